"""What came out of one task. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskResult:
    """The score of a model on one task, and each item's outcome for paired tests.

    `value` is a fraction of items, or the area under the ROC curve if `metric` is "auc". `items` holds equally
    long lists: "id" and, for "auc", "score" (log p(yes) - log p(no), nats) and "gold" (1 for yes); else "correct"
    (0 or 1) and "margin" where log-probabilities were compared (that of the right option less the best other one,
    in nats, per character if the metric is; of a cloze, the log-probability of its word). `version` changes when the
    items do.
    """

    name: str
    domain: str
    metric: str
    value: float
    items: dict[str, list]
    version: str
    n: int
