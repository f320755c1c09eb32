// Loads every page in a frame of each width and colour scheme, and notes what a reader would stumble over.
const results = [];
const luminance = ([r, g, b]) => {
  const part = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const colour = (text) => {
  const [r, g, b, a = 1] = (text.match(/[\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  return { rgb: [r, g, b], alpha: a };
};

function background(element, view) {
  for (let node = element; node; node = node.parentElement) {
    const style = view.getComputedStyle(node);
    if (style.backgroundImage !== "none") return null; // a picture: nothing to compute
    const found = colour(style.backgroundColor);
    if (found.alpha > 0.95) return found.rgb;
  }
  return [255, 255, 255];
}

function pale(document, view) {
  const found = [];
  const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    if (element.closest("svg, mjx-container, script, style, noscript, .headerlink, [aria-hidden=true], .visually-hidden")) continue;
    const style = view.getComputedStyle(element), behind = background(element, view);
    if (!behind) continue;
    const [low, high] = [luminance(colour(style.color).rgb), luminance(behind)].sort((a, b) => a - b);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && +style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${element.tagName}.${element.className} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return [...new Set(found)].slice(0, 5);
}

const nameless = (document) =>
  [...document.querySelectorAll("a[href], button, input, select, summary")]
    .filter((e) => e.checkVisibility() && e.type !== "hidden")
    .filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.title || e.labels?.length || e.placeholder || e.querySelector("img[alt], title")))
    .map((e) => e.outerHTML.slice(0, 100));

const unreachable = (document) =>
  [...document.querySelectorAll("article *")]
    .filter((e) => e.scrollWidth > e.clientWidth + 2 && ["auto", "scroll"].includes(document.defaultView.getComputedStyle(e).overflowX))
    .filter((e) => e.checkVisibility() && e.tabIndex < 0 && !e.querySelector("a[href], button, select"))
    .map((e) => `${e.tagName}.${e.className}`);

async function look(page, width, scheme) {
  const frame = document.createElement("iframe");
  frame.width = width;
  frame.height = 900;
  localStorage.setItem("mode", scheme);
  localStorage.setItem("theme", scheme);
  document.body.append(frame);
  await new Promise((done) => {
    frame.onload = done;
    frame.src = page;
  });
  await new Promise((done) => setTimeout(done, 150));
  await frame.contentWindow.MathJax?.startup?.promise;
  await new Promise((done) => setTimeout(done, 50));
  const inside = frame.contentDocument, view = frame.contentWindow;
  inside.documentElement.dataset.theme = scheme;
  const root = inside.documentElement;
  const entries = [...view.performance.getEntriesByType("navigation"), ...view.performance.getEntriesByType("resource")];
  results.push({
    page, width, scheme,
    overflow: Math.max(root.scrollWidth, inside.body.scrollWidth) - view.innerWidth,
    files: entries.map((entry) => new URL(entry.name).pathname),
    pale: pale(inside, view),
    nameless: nameless(inside),
    unreachable: unreachable(inside),
  });
  frame.remove();
}

(async () => {
  for (const page of PAGES) for (const [width, scheme] of [[1280, "light"], [1280, "dark"], [390, "light"], [390, "dark"]]) await look(page, width, scheme);
  const made = document.createElement("pre");
  made.id = "results";
  made.textContent = JSON.stringify(results);
  document.body.replaceChildren(made);
})();
