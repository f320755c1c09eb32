"""Run a list of configurations, skipping what is stored: interrupt it at any time and start it again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from crosscal.errors import InputError
from crosscal.paths import results_dir
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import Settings
from crosscal.results.store import RunRecord, has_run, load_runs, save_run
from crosscal.study.identity import DENSE, FLOAT32, identify, run_key
from crosscal.types import RunConfig

_CONTENTS = ("model", "dense", "calibration", "held_out")


class _StoredRuns(NamedTuple):
    """Where the runs of a chapter are stored, which they are, and how many were planned."""

    folder: Path
    run_ids: list[str]
    planned: int


def run_chapter(name: str, settings: Settings, chosen: slice = slice(None)) -> _StoredRuns:
    """Make a chapter's missing runs, or with `compute = "never"` only look up what is stored, without torch.

    `chosen` narrows what is made to a part of the plan, in which what matters most comes first.

    Raises `InputError` when the dense model's run, or all others, are missing and nothing is to be computed.
    """
    folder, chapter = results_dir(settings.preset), CHAPTERS[name]
    if settings.compute == "never":
        configs = chapter.configs(Maker(settings))
        return _StoredRuns(folder, find_stored(configs, folder), len(configs))
    from crosscal.models.loading import resolve_device, resolve_dtype

    device = resolve_device(settings.device)
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    configs = chapter.configs(Maker(settings, device.type, dtype))
    ids = [
        run_id
        for model in dict.fromkeys(config.model for config in configs[chosen])
        for run_id in _run_model([c for c in configs[chosen] if c.model == model], folder, settings, str(device))
    ]
    return _StoredRuns(folder, ids, len(configs))


def _run_model(configs: list[RunConfig], folder: Path, settings: Settings, device: str) -> list[str]:
    """Make the missing runs on one model, each stored as soon as it is done; return the ids of all."""
    from crosscal.study.session import Session

    first = next((config for config in configs if config.method != FLOAT32), configs[0])
    session = Session(first.model, device=device, dtype=first.dtype, accept_terms=settings.accept_terms)
    keys = [run_key(config.to_json(), session.identify(config)) for config in configs]
    runs = load_runs(folder, skip_damaged=True)
    stored = {run_key(run.config, run.provenance.get("identity", {})): run.run_id for run in runs}
    ids = [stored.get(key, key) for key in keys]
    missing = [(config, run_id) for config, run_id in zip(configs, ids, strict=True) if not has_run(folder, run_id)]
    bar = tqdm(missing, desc=f"{settings.preset}: {len(ids) - len(missing)} of {len(ids)} runs stored", unit="run")
    for config, run_id in bar:
        if has_run(folder, run_id):  # made by another process in the meantime
            continue
        bar.set_postfix_str(f"{config.method} {config.target}")
        save_run(folder, replace(session.record(config, settings.preset), run_id=run_id))
    return ids


def find_stored(configs: Sequence[RunConfig], folder: Path, *, partial: bool = False) -> list[str]:
    """Return the ids of the stored runs among these configurations, on whatever device and in whatever dtype.

    The runs are those of the model and the texts as they are now. Where these are not at hand, all runs must have been
    made of the same ones. Needs no torch.

    Raises `InputError` when the first, the dense model, or every other run is missing, unless a `partial` list will
    do, and when runs of several generations of a text or model are stored and nothing tells which are meant.
    """
    stored: dict[str, list[RunRecord]] = {}
    for record in load_runs(folder):
        stored.setdefault(_asked(record.config), []).append(record)
    fitting = {config: [r for r in stored.get(_asked(config.to_json()), []) if _fits(r, config)] for config in configs}
    generation = _generation([record for records in fitting.values() for record in records], folder)
    for config, records in fitting.items():
        fitting[config] = [record for record in records if _made_of(record).items() <= generation.items()]
    places = {model: _best_place(model, fitting) for model in {config.model for config in configs}}
    ids = [
        next((r.run_id for r in fitting[c] if c.method == FLOAT32 or _place(r) == places[c.model]), None)
        for c in configs
    ]
    if not partial and (ids[0] is None or not any(ids[1:])):
        missing = configs[0] if ids[0] is None else configs[1]
        raise InputError(
            f"{folder} holds no run of {missing.method} {missing.target} on {missing.model} with these settings and "
            "contents; set compute to 'missing' to make it"
        )
    return [run_id for run_id in ids if run_id is not None]


def _asked(config: Mapping) -> str:
    """The hash of what a configuration asks for, wherever it is computed."""
    return run_key({name: value for name, value in config.items() if name not in ("device", "dtype")}, {})


def _entries(config: Mapping, identity: Mapping) -> dict[tuple[str, str], object]:
    """The contents and versions that a run is made of, one by one; empty when it does not tell."""
    names = {"model": config["model"], "method": config["method"]}
    return {
        (kind, name): value
        for kind, entry in identity.items()
        for name, value in (entry if isinstance(entry, dict) else {names.get(kind, ""): entry}).items()
    }


def _made_of(record: RunRecord) -> dict[tuple[str, str], object]:
    return _entries(record.config, record.provenance.get("identity", {}))


def _fits(record: RunRecord, config: RunConfig) -> bool:
    """Whether a run was made of the model and the texts as they are now, as far as they are at hand."""
    made, now = _made_of(record), _entries(vars(config), identify(config, fetch=False))
    return bool(made) and all(made.get(e) == value for e, value in now.items() if e[0] in _CONTENTS and value)


def _generation(records: Sequence[RunRecord], folder: Path) -> dict[tuple[str, str], object]:
    """The one hash of each model and text, and the newest version of each method, task and evaluation.

    Raises `InputError` where there are several hashes: then nothing is at hand that tells which are meant.
    """
    generation: dict[tuple[str, str], object] = {}
    for record in sorted(records, key=lambda record: record.provenance.get("finished", "")):
        for entry, value in _made_of(record).items():
            if entry[0] in _CONTENTS and generation.get(entry, value) != value:
                raise InputError(
                    f"{folder} holds runs of several versions of {entry[1]}, which is not at hand to tell which are "
                    "meant; put it back where it was, or move the runs of all versions but one elsewhere"
                )
            generation[entry] = value
    return generation


def _place(record: RunRecord) -> tuple[str, str]:
    return record.config["device"], record.config["dtype"]


def _best_place(model: str, fitting: Mapping[RunConfig, list[RunRecord]]) -> tuple[str, str] | None:
    """The device and dtype in which most runs of a model are stored, its dense run among them if possible."""
    counts: dict[tuple[str, str], tuple[bool, int]] = {}
    for config, records in fitting.items():
        for place in {_place(r) for r in records if config.model == model and config.method != FLOAT32}:
            dense, count = counts.get(place, (False, 0))
            counts[place] = (dense or config.method == DENSE, count + 1)
    return max(counts, key=counts.__getitem__, default=None)
