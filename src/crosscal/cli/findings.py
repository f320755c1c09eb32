"""From what was measured to numbers with intervals, alone or paired with the dense model's."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosscal.cli.measure import Measured

DIVERGENCES = ("js_divergence", "kl_divergence", "kl_divergence_reverse", "top1_agreement")


def findings(found: "Measured", dense: "Measured | None") -> dict:
    """A model's texts and tasks as plain numbers; each has `value`, its 95 % interval `lo`, `hi`, and `n` resampled.

    With the dense model's, texts get the ratio of perplexities and tasks the paired change, with `p` of no change.
    """
    texts = {name: _text(part, dense and dense.texts[name]) for name, part in found.texts.items()}
    before = _results(dense) if dense else {}
    tasks = {name: _task(name, result, before.get(name)) for name, result in _results(found).items()}
    return {"model": found.name, "texts": texts, "tasks": tasks}


def _results(measured: "Measured") -> dict[str, dict]:
    """Results by task; a group of the harness brings several."""
    return {name: result for group in measured.tasks.values() for name, result in group.items()}


def _text(windows: dict[str, list[float]], dense: dict[str, list[float]] | None) -> dict:
    import numpy as np

    from crosscal.stats import bootstrap_interval, bootstrap_mean, exp_mean

    nll = np.array(windows["nll"])
    found = {"perplexity": _cell(math.exp(nll.mean()), bootstrap_interval(nll, exp_mean), len(nll))}
    if dense is not None:
        before = np.array(dense["nll"])
        found["perplexity_dense"] = _cell(math.exp(before.mean()), bootstrap_interval(before, exp_mean), len(before))
        ratio = bootstrap_mean([nll - before]).map(math.exp)
        found["perplexity_ratio"] = _cell(ratio.value, (ratio.lo, ratio.hi), ratio.n)
    for metric in DIVERGENCES:
        if metric in windows:
            values = np.array(windows[metric])
            found[metric] = _cell(float(values.mean()), bootstrap_interval(values), len(values))
    return found


def _task(name: str, result: dict, dense: dict | None) -> dict:
    from crosscal.metrics.tasks import TASKS

    chance = TASKS[name].chance if name in TASKS else None
    found = {"metric": result["metric"], "domain": result["domain"], "chance": chance, **_score(result)}
    if dense is None:
        return found
    before = _score(dense)
    usable = chance is None or before["lo"] > chance
    return found | {"dense": before, "change": _change(result, dense), "usable": usable}


def _score(result: dict) -> dict:
    import numpy as np

    from crosscal.stats import area_under_curve, bootstrap_interval

    items = result["items"]
    if result["metric"] == "auc":
        interval = bootstrap_interval(np.column_stack([items["score"], items["gold"]]), area_under_curve)
    else:
        interval = bootstrap_interval(items["correct"])
    return _cell(result["value"], interval, result["n"])


def _change(result: dict, dense: dict) -> dict:
    """The paired change: the exact sign test's p on the items that changed, for AUC the bootstrap's."""
    import numpy as np

    from crosscal.stats import auc_difference, bootstrap_mean, sign_test_p

    if result["metric"] == "auc":
        after, before = result["items"], dense["items"]
        found = auc_difference(np.array(before["score"]), np.array(after["score"]), np.array(before["gold"]))
        return _cell(found.value, (found.lo, found.hi), found.n) | {"p": found.p}
    gaps = differences(result, dense)
    found = bootstrap_mean([gaps])
    p = sign_test_p(int((gaps > 0).sum()), int((gaps < 0).sum()))
    return _cell(found.value, (found.lo, found.hi), found.n) | {"p": p}


def differences(result: dict, dense: dict):
    """Correct after minus correct before, item by item."""
    import numpy as np

    after = dict(zip(result["items"]["id"], result["items"]["correct"], strict=True))
    before = zip(dense["items"]["id"], dense["items"]["correct"], strict=True)
    return np.array([after[item] - correct for item, correct in before], dtype=float)


def mean_change(found: "Measured", dense: "Measured", tasks: list[str]) -> dict | None:
    """The mean change over tasks scored by accuracy, tasks weighing the same; `p` is the sign-flip test's."""
    from crosscal.stats import bootstrap_mean, sign_flip_p

    after, before = _results(found), _results(dense)
    gaps = [differences(after[name], before[name]) for name in tasks if before[name]["metric"] != "auc"]
    if not gaps:
        return None
    mean = bootstrap_mean(gaps)
    return _cell(mean.value, (mean.lo, mean.hi), mean.n) | {"p": sign_flip_p(gaps), "tasks": len(gaps)}


def correct_for_many(models: list[dict]) -> None:
    """Add `p_holm` to every usable task's change: Holm's correction over all of them, the comparisons in one table."""
    from crosscal.stats import holm

    changes = [task["change"] for model in models for task in model["tasks"].values() if task["usable"]]
    for change, adjusted in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["p_holm"] = float(adjusted)


def _cell(value: float, interval: tuple[float, float], n: int) -> dict:
    return {"value": float(value), "lo": float(interval[0]), "hi": float(interval[1]), "n": int(n)}
