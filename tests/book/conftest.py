"""The committed book, built once; `CROSSCAL_BOOK=DIR` checks another one, such as the one `make book` stages."""

import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crosscal.paths import checkout


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return checkout()


@pytest.fixture(scope="session")
def html(root, tmp_path_factory) -> Path:
    """The folder of built pages, from a fresh build with warnings as errors, where torch cannot be imported."""
    return build(root, tmp_path_factory)


def build(root: Path, tmp_path_factory) -> Path:
    """Build the book from scratch into a new folder and return the folder of its pages."""
    blocked = tmp_path_factory.mktemp("blocked")
    (blocked / "torch.py").write_text("raise ImportError('the book is built without torch')\n")
    source = Path(os.environ.get("CROSSCAL_BOOK", root / "book")).resolve()
    output = tmp_path_factory.mktemp("book")
    command = [Path(sys.executable).with_name("jupyter-book"), "build", source, "--path-output", output]
    done = subprocess.run(
        [*command, "-W", "-n", "--keep-going", "--all"],
        env=os.environ | {"PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output / "_build" / "html"


@pytest.fixture(scope="session")
def pages(html) -> list[Path]:
    """The book's own pages: all but search and indexes."""
    others = ("search", "genindex", "prf-prf")
    built = sorted(page for page in html.rglob("*.html") if "_static" not in page.parts)
    return [page for page in built if page.stem not in others]


class _Handler(SimpleHTTPRequestHandler):
    """Serves the pages, and notes every request that a browser sends to it as to a proxy for another host."""

    foreign: list[str]

    def do_GET(self):
        if self.path.startswith("/"):
            return super().do_GET()
        self.foreign.append(self.path)
        return self.send_error(502)

    def do_CONNECT(self):
        self.foreign.append(self.path)
        self.send_error(502)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="session")
def server(html):
    """A server of the pages on this machine: its address, and the list of requests for other hosts."""
    handler = type("Handler", (_Handler,), {"foreign": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(html))) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}", handler.foreign
        http.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's command; tests that need it are skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine; install it to check the pages in a browser")
    return found
