"""The pages in headless Chromium with no network: nothing missing, no error, no red TeX."""

import re
import subprocess

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-extensions", "--disable-default-apps", "--disable-client-side-phishing-detection", "--no-pings"),
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter,Translate,AutofillServerCommunication",
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000", "--dump-dom"),
]
CONSOLE = re.compile(r':CONSOLE[:(]\d+\)?\] "(.*)", source: (\S+)')
# Asked for by the browser itself, whatever the page.
OF_THE_BROWSER = re.compile(r"^(http://)?(accounts|update|clients\d)\.google(apis)?\.com")
COMPLAINT = re.compile(r"error|uncaught|failed|refused|blocked", re.IGNORECASE)


def test_pages_work_with_the_network_off(html, pages, server, chromium, tmp_path):
    address, foreign = server
    equations = 0
    for number, page in enumerate(pages):
        where = page.relative_to(html).as_posix()
        browser = [chromium, *FLAGS, f"--user-data-dir={tmp_path / str(number)}", f"--proxy-server={address}"]
        done = subprocess.run([*browser, f"{address}/{where}"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (where, done.stderr[-2000:])
        said = [text for text, _ in CONSOLE.findall(done.stderr) if COMPLAINT.search(text)]
        assert said == [], where
        assert "<mjx-merror" not in done.stdout, where
        assert 'mathcolor="red"' not in done.stdout, where
        source = page.read_text(encoding="utf-8")
        if 'class="math' in source:
            assert "mjx-container" in done.stdout, where
            equations += done.stdout.count("<mjx-container")
        assert [request for request in foreign if not OF_THE_BROWSER.search(request)] == [], where
    assert equations > 20
