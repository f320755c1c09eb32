"""A run is known by the contents of its model and texts, also where it is only looked up."""

import json
from dataclasses import replace

import pytest

from crosscal.errors import InputError
from crosscal.methods.registry import METHODS
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.store import RunRecord, load_runs, save_run
from crosscal.study.grid import find_stored
from crosscal.study.identity import _model_identity, _text_identity, identify, piece_keys, run_key


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A model folder and a text, in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "README.md"):
        (folder / name).write_text(name)
    write_notes(0)
    return tmp_path


def write_notes(seed: int) -> None:
    with open("notes.jsonl", "w") as file:
        file.writelines(json.dumps({"text": f"document {i} of edition {seed}"}) + "\n" for i in range(20))


def plan(device="cpu", dtype="bfloat16", **changes):
    settings = ReportCardSettings(model="tiny", domain="notes.jsonl", tasks="", preset="smoke", **changes)
    return CHAPTERS["report_card"].configs(Maker(settings, device, dtype))


def store(folder, configs, finished="2026-01-01 00:00 UTC", **versions) -> list[str]:
    """Made-up runs of what the names stand for now."""
    ids = []
    for config in configs:
        known = identify(config, fetch=False) | {"method": 1} | versions
        ids.append(run_key(config.to_json(), known))
        save_run(folder, RunRecord(ids[-1], config.to_json(), {"identity": known, "finished": finished}, []))
    return ids


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"])
def test_model_is_its_files(room, name):
    before = _model_identity("tiny")
    assert _model_identity(str(room / "tiny")) == before, "where it lies does not count"
    (room / "tiny" / "README.md").write_text("a card")
    (room / "tiny" / "crosscal.json").write_text("{}")
    assert _model_identity("tiny") == before
    (room / "tiny" / name).write_text("something else")
    assert _model_identity("tiny") != before


def test_embedded_contents_are_known_without_files(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path))
    known = [_model_identity(name) for name in ("smollm2-135m", "gemma3-270m")]
    known += [_text_identity(name, split) for name in ("c4", "pubmed") for split in ("calibration", "held_out")]
    assert len(set(known)) == 6
    assert None not in known
    assert not list(tmp_path.iterdir())


def test_what_is_not_at_hand_is_none(room):
    assert _model_identity("./gone") is None
    assert _model_identity("no/such-model") is None
    assert _text_identity("gone.jsonl", "held_out", fetch=False) is None
    assert _text_identity("hub:some/set", "held_out", fetch=False) is None
    with pytest.raises(InputError):
        _text_identity("gone.jsonl", "held_out")


def test_edited_text_is_another(room):
    """Each part of a text has an identity of its own."""
    before = [_text_identity("notes.jsonl", split) for split in ("calibration", "held_out")]
    write_notes(1)
    after = [_text_identity("notes.jsonl", split) for split in ("calibration", "held_out")]
    assert len({*before, *after}) == 4


def test_looking_up_takes_one_generation(room):
    """A text edited twice: only runs of the text as it is are shown, and none when it is edited once more."""
    generations = []
    for seed in range(3):
        write_notes(seed)
        generations.append(store(room, plan()))
    assert find_stored(plan("auto", "auto"), room) == generations[2]
    write_notes(1)
    assert find_stored(plan(), room) == generations[1]
    write_notes(9)
    assert find_stored(plan(), room, partial=True) == []
    with pytest.raises(InputError, match=r"holds no run of dense .*contents"):
        find_stored(plan(), room)


def test_looking_up_without_the_text_needs_one_generation(room):
    first = store(room, plan())
    notes = (room / "notes.jsonl").read_text()
    (room / "notes.jsonl").unlink()
    assert find_stored(plan(), room) == first
    write_notes(1)
    store(room, plan()[:2])
    (room / "notes.jsonl").unlink()
    with pytest.raises(InputError, match=r"several versions of notes.jsonl, which is not at hand"):
        find_stored(plan(), room)
    (room / "notes.jsonl").write_text(notes)
    assert find_stored(plan(), room) == first


def test_corrected_config_is_another_model(room):
    store(room, plan())
    (room / "tiny" / "config.json").write_text('{"rms_norm_eps": 0.5}')
    assert find_stored(plan(), room, partial=True) == []


def test_looking_up_never_mixes_devices_or_versions(room):
    store(room, plan("cuda", "float16")[:2])
    cpu = store(room, plan())
    assert find_stored(plan("auto", "auto"), room) == cpu
    newer = store(room, plan()[:3], "2026-02-01 00:00 UTC", evaluation=3)
    assert find_stored(plan(), room) == newer, "what is older than the newest dense run counts as missing"


def test_runs_that_do_not_tell_their_contents_are_not_taken(room):
    for config in plan():
        save_run(room, RunRecord(config.method, config.to_json(), {}, []))
    assert find_stored(plan(), room, partial=True) == []


def test_dense_run_is_one_whatever_is_calibrated(room):
    dense, other = plan()[0], plan(seed=7)[0]
    known = identify(dense)
    assert run_key(dense.to_json(), known) == run_key(replace(other, n_windows=3, window=9).to_json(), known)
    half = plan()[1]
    assert run_key(half.to_json(), known) != run_key(replace(half, seed=7).to_json(), known)


def test_pieces_are_shared_by_contents(room):
    """A task asked later, or the model under another name, leaves the other pieces as they are."""
    config = plan()[1]
    keys = piece_keys(config, identify(config))
    for change in ({"tasks": ("sciq",)}, {"model": str(room / "tiny")}, {"texts": ("news", "notes.jsonl")}):
        other = replace(config, **change)
        assert set(piece_keys(other, identify(other)).values()) & set(keys.values()) >= {keys["text", "notes.jsonl"]}
    for change in ({"seed": 1}, {"dtype": "float32"}, {"eval_window": 32}, {"method": "wanda"}, {"device": "cuda"}):
        other = replace(config, **change)
        assert piece_keys(other, identify(other))["text", "notes.jsonl"] != keys["text", "notes.jsonl"]


AWAITED = ("dpruner",)  # of whose runs of version 1, which were taken away, not all are made again yet


def test_committed_runs_are_all_found(monkeypatch, tmp_path):
    from crosscal.paths import checkout

    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path))
    folder, found, asked = checkout() / "results" / "full", set(), set()
    for chapter in CHAPTERS.values():
        configs = chapter.configs(Maker(chapter.settings(preset="full", compute="never")))
        found |= set(find_stored(configs, folder))
        asked |= {replace(c, device="", dtype="") for c in configs if c.method not in AWAITED}
    assert found == {path.stem for path in folder.glob("*.json")}
    runs = load_runs(folder)
    assert len([run for run in runs if run.config["method"] not in AWAITED]) == len(asked)
    made = [run for run in runs if run.config["method"] in METHODS]
    assert all(METHODS[run.config["method"]].version == run.provenance["identity"]["method"] for run in made)
