import re
import subprocess

import yaml


def test_every_make_command_of_the_documents_exists(root):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    documents = [root / "README.md", root / "CONTRIBUTING.md", root / "book" / "rerun.md"]
    for document in documents:
        for command in re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE):
            assert command in targets, (document, command)


def test_help_lists_every_target(root):
    shown = subprocess.run(["make", "-s", "help"], cwd=root, capture_output=True, text=True, check=True).stdout
    targets = "help setup book test test-fast lint check notebooks bench site serve clean"
    for target in targets.split():
        assert re.search(rf"^{target}\s", shown, re.MULTILINE), target


def test_an_old_python_is_named(root, tmp_path):
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "-B", "setup", f"PYTHON={old}"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode != 0
    assert "crosscal needs Python 3.11 or newer" in done.stdout


def test_the_tree_names_what_exists(root):
    tree = (root / "README.md").read_text().split("## The tree")[1].split("```")[1]
    top = ""
    for line in tree.strip().splitlines():
        names = re.match(r"\s*((?:[\w./]+, )*[\w./]+)", line).group(1).split(", ")
        for name in names:
            path = root / top / name if line.startswith("  ") else root / name
            assert path.exists(), name
        if line.startswith("src/"):
            top = names[0]


def test_the_headline_figure_of_the_readme_exists_and_has_words(root):
    alt, path = re.search(r"!\[(.*?)\]\((.*?)\)", (root / "README.md").read_text()).groups()
    assert (root / path).exists()
    assert len(alt) > 40


def test_versions_are_exact(root):
    for name in ("constraints.txt", "book.txt"):
        lines = [line for line in (root / "requirements" / name).read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), name
    pins = (root / "requirements" / "book.txt").read_text().splitlines()
    assert not any(pin.startswith("torch") for pin in pins)
    assert set(pins[1:]) <= set((root / "requirements" / "constraints.txt").read_text().splitlines())


def test_the_files_for_citing_and_for_conda_are_valid(root):
    assert yaml.safe_load((root / "CITATION.cff").read_text())["cff-version"] == "1.2.0"
    environment = yaml.safe_load((root / "environment.yml").read_text())
    assert any("constraints.txt" in str(entry) for entry in environment["dependencies"])
