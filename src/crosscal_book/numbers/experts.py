"""Which experts a text uses: tokens that reached each expert of a mixture while it was calibrated, by source."""

import re
from collections.abc import Iterable, Mapping

import pandas as pd
import seaborn

from crosscal.results.store import load_run
from crosscal_book.chapter import Page
from crosscal_book.drawing import Drawing, open_canvas

_EXPERT = re.compile(r"(\d+)\..*?\bexperts\.(\d+)\..*")
_NEVER = "#f0a878"  # of experts that no token reached


def expert_tokens(layers: Iterable[Mapping]) -> pd.DataFrame:
    """Return a line for each block, expert and source: tokens, times an even share (`value`), whether it fell back.

    `layers` are a stored run's. What an expert's layers read they read together, so one of them counts.

    >>> layers = [{"name": f"0.mlp.experts.{n}.up_proj", "tokens": {"c4": 4 * n}, "fallback": ""} for n in range(2)]
    >>> expert_tokens(layers)[["expert", "panel", "tokens", "value"]].values.tolist()
    [[0, 'c4', 0, 0.0], [1, 'c4', 4, 2.0]]
    """
    experts: dict[tuple[int, int], Mapping] = {}
    for layer in layers:
        if place := _EXPERT.fullmatch(layer["name"]):
            experts.setdefault((int(place[1]), int(place[2])), layer)
    sources = list(dict.fromkeys(source for layer in experts.values() for source in layer.get("tokens") or {}))
    frame = pd.DataFrame(
        [
            (block, expert, source, (layer.get("tokens") or {}).get(source, 0), bool(layer.get("fallback")))
            for (block, expert), layer in sorted(experts.items(), key=lambda item: item[0])
            for source in sources
        ],
        columns=["block", "expert", "panel", "tokens", "fell back"],
    )
    even = frame.groupby(["block", "panel"])["tokens"].transform("mean")
    return frame.assign(value=(frame["tokens"] / even.where(even > 0, 1)).round(4))


def experts_figure(page: Page, run_ids: Iterable[str]):
    """Return the figure of the run with the most sources, or a sentence for a model without experts."""
    found = [(run_id, expert_tokens(load_run(page.folder, run_id).layers)) for run_id in run_ids]
    run_id, frame = max(found, key=lambda pair: pair[1]["panel"].nunique(), default=("", pd.DataFrame()))
    if frame.empty:
        return "This model has no experts that text is routed to, so that there is no figure of which of them are used."
    panels, blocks = list(frame["panel"].unique()), frame["block"].nunique()
    canvas, every = open_canvas(1, len(panels), (6.6, 1.2 + 0.22 * blocks), sharey=True)
    said = []
    for axes, panel in zip(every, panels, strict=True):
        own = frame[frame["panel"] == panel]
        table = own.pivot(index="block", columns="expert", values="value")
        axes.set_facecolor(_NEVER)
        bar = {"label": "tokens, times an even share"}
        seaborn.heatmap(table, mask=table == 0, cmap="Blues", vmin=0, ax=axes, cbar=panel == panels[-1], cbar_kws=bar)
        axes.set(title=panel, xlabel="expert", ylabel="block" if panel == panels[0] else "")
        never, busiest = int((own["tokens"] == 0).sum()), own.loc[own["value"].idxmax()]
        said.append(
            f"{panel} never reaches {never} of {len(own)}, and expert {busiest['expert']} of block {busiest['block']} "
            f"gets {busiest['value']:.1f} times an even share"
        )
    few = int(frame.drop_duplicates(["block", "expert"])["fell back"].sum())
    text = f"Which experts each calibration text uses: {'; '.join(said)}. "
    rest = (
        "Orange: never reached. " + f"{few} saw too few tokens and used the statistics of all experts of their layer."
    )
    return Drawing(canvas, frame.assign(run_id=run_id), {"value": "tokens, times an even share"}), text + rest, text
