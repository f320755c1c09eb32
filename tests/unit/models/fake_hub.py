"""A hub for tests: its cache laid out as the hub's library lays it out, and a server on this machine that gives files.

The server answers what the real one answers (statuses, error codes and headers), so that the hub's library itself
raises what it raises in life.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT, CONVERTED = "a" * 40, "c" * 40


def fill_cache(cache: Path, name: str, folder: Path, *, leave_out: str = "", ref: str = "main") -> Path:
    """Put a folder into a hub cache: content under its hash, names as links to it; the snapshot's folder."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    (repository / "refs" / ref).parent.mkdir(parents=True)
    (repository / "refs" / ref).write_text(COMMIT)
    for file in sorted(folder.iterdir()):
        if file.name == leave_out:
            continue
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@dataclass
class Repository:
    """One model on the fake hub: its files by commit, and who may read them."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False

    @classmethod
    def of(cls, folder: Path, **access: bool) -> "Repository":
        """The files of a folder, as the only commit."""
        return cls({COMMIT: {path.name: path.read_bytes() for path in folder.iterdir()}}, **access)


@dataclass
class FakeHub:
    """What the server serves, and the names of the files that were fetched from it."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    good_token: str = ""
    fetched: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if token and self.good_token and token != self.good_token:
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        parts = unquote(path).strip("/").split("/")
        is_api = parts[0] == "api"
        owner, model, *rest = parts[2:] if is_api else parts
        repository = self.repositories.get(f"{owner}/{model}")
        if repository is None:
            return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
        if is_api:
            return _json(self._api(f"{owner}/{model}", repository, rest))
        if repository.gated:
            return (403 if token else 401), {"X-Error-Code": "GatedRepo"}, b""
        _, commit, file = rest
        if file not in repository.files[commit]:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        body = repository.files[commit][file]
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body

    def _api(self, name: str, repository: Repository, rest: list[str]) -> object:
        if rest[:1] == ["discussions"]:
            return _discussions(name, CONVERTED in repository.files)
        commit = CONVERTED if "pr" in rest or CONVERTED in rest else COMMIT
        files = repository.files[commit]
        if rest[:1] == ["tree"]:
            return [
                {"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for path, body in files.items()
            ]
        return {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}


def _json(found: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()


def _discussions(name: str, converted: bool) -> dict:
    proposed = {
        "num": 7,
        "title": "Adding `safetensors` variant of this model",
        "author": {"name": "SFconvertbot"},
        "createdAt": "2023-01-01T00:00:00.000Z",
        "status": "open",
        "repo": {"name": name, "type": "model"},
        "isPullRequest": True,
    }
    found = [proposed] if converted else []
    return {"discussions": found, "count": len(found), "start": 0}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a fake hub on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, body = hub.answer(path, token)
            if self.command == "GET" and "/resolve/" in path and status == 200:
                hub.fetched.append(path.rsplit("/", 1)[1])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield hub
        server.shutdown()
