"""From the harness's logged samples to scores and per-item outcomes."""

from collections.abc import Sequence

from crosscal.errors import InputError

DECIMALS = 4

ACCURACIES = {"acc_norm": "accuracy_per_char", "acc_bytes": "accuracy_per_byte", "acc": "accuracy"}
"""The harness's name of an accuracy -> ours, the one to report first."""


def auc(scores: Sequence[float], gold: Sequence[int]) -> float:
    """The area under the ROC curve: how often a positive scores above a negative, ties counting one half.

    From the rank sum R of the p positives among p + q items, equal scores sharing their mean rank:
    (R - p (p + 1) / 2) / (p q) (Mann & Whitney 1947). 0.5 where one class is missing.

    >>> auc([0.9, 0.1, 0.1], [1, 0, 1])
    0.75
    """
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    rank = [0.0] * len(scores)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or scores[order[end]] != scores[order[start]]:
            for i in order[start:end]:
                rank[i] = (start + 1 + end) / 2
            start = end
    positives = sum(gold)
    pairs = positives * (len(gold) - positives)
    ranks = sum(r for r, g in zip(rank, gold, strict=True) if g)
    return (ranks - positives * (positives + 1) / 2) / pairs if pairs else 0.5


def yes_no_items(samples: list[dict]) -> dict[str, list]:
    """Scores and golds of items whose options are yes and no, in this order."""
    lists: dict[str, list] = {"id": [], "score": [], "gold": []}
    for sample in samples:
        yes, no = (logprob for logprob, _ in sample["filtered_resps"])
        lists["id"].append(sample["doc"]["id"])
        lists["score"].append(round(yes - no, DECIMALS))
        lists["gold"].append(int(sample["doc"]["gold"] == 0))
    return lists


def option_items(samples: list[dict], metric: str) -> dict[str, list]:
    """Outcomes of embedded items by the harness's own accuracy, and margins."""
    ours = ACCURACIES[metric]
    lists: dict[str, list] = {"id": [], "correct": [], "margin": []}
    for sample in samples:
        document, logprobs = sample["doc"], [logprob for logprob, _ in sample["filtered_resps"]]
        lengths = [len(choice) if ours == "accuracy_per_char" else 1 for choice in document["choices"]]
        lists["id"].append(document["id"])
        lists["correct"].append(int(sample[metric]))
        lists["margin"].append(margin([p / n for p, n in zip(logprobs, lengths, strict=True)], document["gold"]))
    return lists


def margin(scores: Sequence[float], gold: int) -> float:
    """The right option's score less the best other one's; alone, its score.

    >>> margin([-1.0, -3.0, -2.0], 2)
    -1.0
    """
    others = [score for i, score in enumerate(scores) if i != gold]
    return round(scores[gold] - max(others) if others else scores[gold], DECIMALS)


def harness_items(name: str, samples: list[dict]) -> tuple[str, dict[str, list]]:
    """`(metric, outcomes)` of one of the harness's own tasks: its accuracy, else its first metric that is a number.

    Raises `InputError` when no metric of the task gives one number per item.
    """
    first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    numbers = [m for m in first[0]["metrics"] if isinstance(first[0][m], int | float)]
    if not numbers:
        raise InputError(
            f"task '{name}' has no score per item ({', '.join(first[0]['metrics'])}); choose one scored by accuracy"
        )
    metric = next((m for m in ACCURACIES if m in numbers), numbers[0])
    values = [round(float(sample[metric]), DECIMALS) for sample in first]
    lists = {"id": [str(sample["doc_id"]) for sample in first], "correct": values}
    return ACCURACIES.get(metric, metric), lists
