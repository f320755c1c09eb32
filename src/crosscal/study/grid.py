"""Run a list of configurations, skipping what is stored: interrupt it at any time and start it again."""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from crosscal.errors import InputError
from crosscal.study.store import has_run, hash_json, load_runs, save_run
from crosscal.types import RunConfig


def run_missing(configs: Sequence[RunConfig], folder: Path, preset: str, *, accept_terms: bool = False) -> list[str]:
    """Make every run that the folder does not hold yet; the ids of all, in the order of `configs`.

    All configurations share one model. Each run is stored as soon as it is done.
    """
    from crosscal.models import load_model
    from crosscal.study.provenance import provenance
    from crosscal.study.rows import make_record
    from crosscal.study.session import Session

    first = configs[0]
    loaded = load_model(first.model, device=first.device, dtype=first.dtype, accept_terms=accept_terms)
    session = Session(loaded)
    ids = [session.run_id(config) for config in configs]
    missing = [(run_id, config) for run_id, config in zip(ids, configs, strict=True) if not has_run(folder, run_id)]
    bar = tqdm(missing, desc=f"{preset}: {len(ids) - len(missing)} of {len(ids)} runs stored", unit="run")
    for run_id, config in bar:
        bar.set_postfix_str(f"{config.method} {config.pattern}")
        outcome = session.run(config)
        save_run(folder, make_record(run_id, preset, outcome, provenance(loaded.device) | task_facts(config.tasks)))
    return ids


def task_facts(names: Sequence[str]) -> dict:
    """Version and chance level of each task, to be kept with a run; the harness's own tasks have no known chance."""
    from crosscal.metrics.tasks.registry import TASKS, task_version

    facts = {name: {"version": task_version(name)} for name in names}
    return {"tasks": {n: fact | ({"chance": TASKS[n].chance} if n in TASKS else {}) for n, fact in facts.items()}}


def find_stored(configs: Sequence[RunConfig], folder: Path) -> list[str]:
    """The ids of stored runs with these configurations, made on whatever device and in whatever dtype; needs no torch.

    Raises `InputError` when one is missing.
    """
    stored = {_key(run.config): run.run_id for run in load_runs(folder)}
    ids = []
    for config in configs:
        key = _key(config.to_json())
        if key not in stored:
            raise InputError(
                f"{folder} holds no run of {config.method} {config.pattern} on {config.model} with these settings; "
                "set compute to 'missing' to make it"
            )
        ids.append(stored[key])
    return ids


def _key(config: dict) -> str:
    return hash_json({k: v for k, v in config.items() if k not in ("device", "dtype")})
