// What scrolls sideways can be reached and scrolled by keyboard: wide equations on a narrow screen.
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  for (const box of document.querySelectorAll("mjx-container")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
