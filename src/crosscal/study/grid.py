"""Run a list of configurations, skipping what is stored: interrupt it at any time and start it again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from crosscal.errors import InputError
from crosscal.files import hash_json
from crosscal.paths import results_dir
from crosscal.plan.parameters import Settings
from crosscal.results.store import has_run, load_runs, save_run
from crosscal.types import RunConfig


@dataclass(frozen=True)
class StoredRuns:
    """Where the runs of a chapter are stored, which they are, and how many were planned."""

    folder: Path
    run_ids: list[str]
    planned: int


def run_chapter(name: str, settings: Settings, chosen: slice = slice(None)) -> StoredRuns:
    """Make a chapter's missing runs, or with `compute = "never"` only look up what is stored, without torch.

    `chosen` narrows what is made to a part of the plan, in which what matters most comes first.

    Raises `InputError` when the dense model's run, or all others, are missing and nothing is to be computed.
    """
    from crosscal.plan.chapters import CHAPTERS, Maker

    folder, chapter = results_dir(settings.preset), CHAPTERS[name]
    if settings.compute == "never":
        configs = chapter.configs(Maker(settings))
        return StoredRuns(folder, find_stored(configs, folder), len(configs))
    from crosscal.models.loading import resolve_device, resolve_dtype

    device = resolve_device(settings.device)
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    configs = chapter.configs(Maker(settings, device.type, dtype))
    ids = run_missing(configs[chosen], folder, settings.preset, accept_terms=settings.accept_terms)
    return StoredRuns(folder, ids, len(configs))


def run_missing(configs: Sequence[RunConfig], folder: Path, preset: str, *, accept_terms: bool = False) -> list[str]:
    """Make every run that the folder does not hold yet; the ids of all, in the order of `configs`.

    One model is in memory at a time. Each run is stored as soon as it is done.
    """
    ids: dict[RunConfig, str] = {}
    for model in dict.fromkeys(config.model for config in configs):
        ids |= _run_model([config for config in configs if config.model == model], folder, preset, accept_terms)
    return [ids[config] for config in configs]


def _run_model(configs: list[RunConfig], folder: Path, preset: str, accept_terms: bool) -> dict[RunConfig, str]:
    """The missing runs on one model."""
    from crosscal.models import load_model
    from crosscal.results.provenance import provenance
    from crosscal.study.rows import make_record
    from crosscal.study.session import Session

    first = next((config for config in configs if config.method != "float32"), configs[0])
    loaded = load_model(first.model, device=first.device, dtype=first.dtype, accept_terms=accept_terms)
    session = Session(loaded)
    ids = {config: session.run_id(config) for config in configs}
    missing = [(config, run_id) for config, run_id in ids.items() if not has_run(folder, run_id)]
    bar = tqdm(missing, desc=f"{preset}: {len(ids) - len(missing)} of {len(ids)} runs stored", unit="run")
    for config, run_id in bar:
        if has_run(folder, run_id):  # made by another process in the meantime
            continue
        bar.set_postfix_str(f"{config.method} {config.target}")
        outcome = session.run(config)
        save_run(folder, make_record(run_id, preset, outcome, provenance(loaded.device) | task_facts(config.tasks)))
    return ids


def task_facts(names: Sequence[str]) -> dict:
    """Version and chance level of each task, to be kept with a run; the harness's own tasks have no known chance."""
    from crosscal.metrics.tasks.registry import TASKS, task_version

    facts = {name: {"version": task_version(name)} for name in names}
    return {"tasks": {n: fact | ({"chance": TASKS[n].chance} if n in TASKS else {}) for n, fact in facts.items()}}


def find_stored(configs: Sequence[RunConfig], folder: Path) -> list[str]:
    """The ids of the stored runs among these configurations, on whatever device and in whatever dtype; needs no torch.

    Raises `InputError` when the first, the dense model, or every other run is missing.
    """
    stored = {_key(run.config): run.run_id for run in load_runs(folder)}
    found = [stored.get(_key(config.to_json())) for config in configs]
    if found[0] is None or not any(found[1:]):
        missing = configs[0] if found[0] is None else configs[1]
        raise InputError(
            f"{folder} holds no run of {missing.method} {missing.target} on {missing.model} with these settings; "
            "set compute to 'missing' to make it"
        )
    return [run_id for run_id in found if run_id is not None]


def count_stored(configs: Sequence[RunConfig], folder: Path) -> int:
    """How many of these configurations have a stored run; needs no torch."""
    stored = {_key(run.config) for run in load_runs(folder)}
    return sum(_key(config.to_json()) in stored for config in configs)


def _key(config: dict) -> str:
    return hash_json({k: v for k, v in config.items() if k not in ("device", "dtype")})
