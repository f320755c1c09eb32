"""The frontier between domain and general loss over the weight of the domain, on texts and on tasks."""

import pandas as pd
from matplotlib.axes import Axes

from crosscal.results.frame import Results
from crosscal.stats import Estimate
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.cross_both import TASKS, pair_name
from crosscal_book.chapters.cross_calibration import models_of
from crosscal_book.chapters.cross_claims import task_domain
from crosscal_book.chapters.cross_marks import slug
from crosscal_book.chapters.cross_runs import GENERAL, HALF, MIX, Mixes, Pair
from crosscal_book.style import Figure, finish, style_of
from crosscal_book.words import listing

BETWEEN = ((MIX, HALF),)
CORNERS = ((-1, -1), (1, 1), (-1, 1), (1, -1))  # lower left first: a frontier leaves it free
POINT_COLUMNS = ["weight", "x", "y", "x_bar", "y_bar"]


def frontier(results: Results, general: str = "c4", model: str | None = None) -> Figure:
    """General loss against domain loss, a panel per (method, domain), points labelled by the weight of the domain.

    Losses are log perplexity over the dense model's, the general one a mean over texts; `model` is the first unless
    given.
    """
    models = models_of(results, general)
    first = next(iter(models))
    model = first if model is None else model
    name = "fig-frontier" if model == first else f"fig-frontier-{slug(model) or 'other'}"
    if not model:
        return sentence_figure(name, "No second model was asked for.")
    found = models.get(model)
    pairs = [p for p in found.pairs(BETWEEN) if len(found.weights(p)) > 1] if found else []
    if not pairs:
        return sentence_figure(
            name, f"No runs of {model} at two weights of a domain are stored, so there is no frontier."
        )
    points = {pair: losses_by_weight(found, pair) for pair in pairs}
    axis = "log perplexity ratio to dense"
    canvas = _panels(points, (f"domain text: {axis}", f"general texts:\n{axis}"))
    whole = [frame for frame in points.values() if {0.0, HALF, 1.0} <= set(frame["weight"])]
    count = f"{sum(map(beyond_sources, whole))} of {len(whole)} (method, domain) pairs"
    caption = (
        f"General against domain loss of {model}, labelled by the domain's weight; lower left is better. In {count} "
        "the mix at weight 0.5 lies nearer to the lower left than the straight line between its two sources. Bars: 95 "
        "% intervals, paired over windows, of the difference from weight 0.5; grey: of that point's loss against dense."
    )
    alt = f"Small panels of general loss against domain loss for {listing([pair_name(p) for p in pairs])}. In {count} "
    return finish(
        canvas, name, caption, alt + "the mix at weight 0.5 lies below the line between general and domain text."
    )


def losses_by_weight(mixes: Mixes, pair: Pair) -> pd.DataFrame:
    """Domain (`x`) and general (`y`) loss of a pair at each weight, with the interval of the difference from `HALF`."""
    lines = []
    for weight in mixes.weights(pair):
        line = {"weight": weight}
        for axis, part in (("x", "domain"), ("y", GENERAL)):
            own, half = (mixes.loss(mixes.run(pair, w), pair.source, part) for w in (weight, HALF))
            line |= {axis: own.value, f"{axis}_bar": (own if weight == HALF else own - half).estimate()}
        lines.append(line)
    return pd.DataFrame(lines, columns=POINT_COLUMNS)


def beyond_sources(frame: pd.DataFrame) -> bool:
    """Whether the point at `HALF` lies below the straight line between weights 0 and 1."""
    points = frame.set_index("weight")
    general, half, domain = (points.loc[w, ["x", "y"]].astype(float).to_numpy() for w in (0.0, HALF, 1.0))
    line, offset = domain - general, half - general
    if line[0] >= 0 or line[1] <= 0:  # no trade-off: nearer is below both
        return bool(half.sum() < min(general.sum(), domain.sum()))
    return bool(line[0] * offset[1] - line[1] * offset[0] > 0)


def tasks_frontier(results: Results, general: str = "c4") -> Figure:
    """Change of general against change of domain task accuracy, in points, laid out like `frontier`."""
    found = next(iter(models_of(results, general).values()))
    points = {pair: _tasks_by_weight(found, pair) for pair in found.pairs(BETWEEN)}
    points = {pair: frame for pair, frame in points.items() if len(frame) > 1}
    if not points:
        return sentence_figure(
            TASKS, "No mixes were asked both domain and general tasks on which the dense model is above chance."
        )
    canvas = _panels(points, ("domain tasks: accuracy change (points)", "general tasks:\naccuracy change (points)"))
    spans = [bar.hi - bar.lo for frame in points.values() for bar in frame["x_bar"]]
    least, most = min(spans), max(spans)
    caption = (
        "Accuracy change against the dense model on general and domain tasks, labelled by the domain's weight; upper "
        f"right is better. The intervals on domain tasks are {least:.0f} to {most:.0f} points wide. "
        "Bars: 95 % intervals, paired over items, of the difference from weight 0.5; grey: from dense."
    )
    alt = (
        f"Small panels of general against domain accuracy change for {listing([pair_name(p) for p in points])}; "
        f"intervals of {least:.0f} to {most:.0f} points."
    )
    return finish(canvas, TASKS, caption, alt)


def _tasks_by_weight(mixes: Mixes, pair: Pair) -> pd.DataFrame:
    lines = []
    for weight in mixes.weights(pair):
        line = {"weight": weight}
        for axis, domain in (("x", task_domain(mixes, pair)), ("y", GENERAL)):
            own, half = (mixes.task_change(mixes.run(pair, w), domain) for w in (weight, HALF))
            if own and half:
                bar = (own if weight == HALF else own - half).estimate().map(lambda change: 100 * change)
                line |= {axis: 100 * own.value, f"{axis}_bar": bar}
        lines.append(line)
    return pd.DataFrame(lines, columns=POINT_COLUMNS).dropna().reset_index(drop=True)


def _panels(points: dict[Pair, pd.DataFrame], names: tuple[str, str]):
    """A row of panels for each method, a column for each domain; the axes' scales are shared along a row."""
    sources = list(dict.fromkeys(pair.source for pair in points))
    methods = list(dict.fromkeys((pair.method, pair.pattern) for pair in points))
    rows, columns = len(methods), len(sources)
    width, height = (6.6, 2.15 * rows + 0.4) if columns > 1 else (4.6, 2.9 * rows + 0.4)
    canvas, grid = panels(rows, columns, width, height, sharex="row", sharey="row")
    for pair, frame in points.items():
        axes = grid[methods.index((pair.method, pair.pattern)) * columns + sources.index(pair.source)]
        _draw(axes, pair, frame)
    for axes in grid:
        if not axes.has_data():
            axes.set_visible(False)
    canvas.draw_without_rendering()  # settles limits and layout, so that places in pixels are final
    for pair, frame in points.items():
        _label(grid[methods.index((pair.method, pair.pattern)) * columns + sources.index(pair.source)], frame)
    for axis, text in zip((canvas.supxlabel, canvas.supylabel), names, strict=True):
        axis(text, fontsize=10)
    return canvas


def _draw(axes: Axes, pair: Pair, frame: pd.DataFrame) -> None:
    """The path over the weights, each point with its bars and its weight."""
    style = style_of(pair.method)
    axes.plot(frame["x"], frame["y"], color=style.colour, alpha=0.5, linewidth=1, zorder=1)
    half = frame.loc[frame["weight"] == HALF, ["x", "y"]].sum()
    for line in frame.to_dict("records"):
        own = line["weight"] == HALF
        bars = [_arms(line[axis], line[f"{axis}_bar"], 0.0 if own else half[axis]) for axis in ("x", "y")]
        axes.errorbar(
            line["x"],
            line["y"],
            xerr=bars[0],
            yerr=bars[1],
            color=style.colour,
            ecolor="#b5b5b5" if own else style.colour,
            marker=style.marker,
            markersize=7 if own else 5,
            markerfacecolor="white" if own else style.colour,
            elinewidth=0.9,
            zorder=2,
        )
    axes.margins(0.16)
    axes.tick_params(labelsize=8.5)
    axes.set_title(f"{style.label} {pair.pattern}, {pair.source}", loc="left", fontsize=9.5)


def _label(axes: Axes, frame: pd.DataFrame) -> None:
    """Write the weights beside their points, in the first corner that no other label has; equal points share one."""
    taken: list[tuple[float, float]] = []
    for (x, y), part in frame.groupby(["x", "y"], sort=False):
        text, own = ", ".join(f"{weight:g}" for weight in part["weight"]), HALF in set(part["weight"])
        place = axes.transData.transform((x, y))
        reach = 5 + 4 * len(text)  # pixels at 100 dots an inch from the point to the middle of its label
        centres = {corner: (place[0] + corner[0] * reach, place[1] + corner[1] * 12) for corner in CORNERS}
        free = [
            corner for corner, (a, b) in centres.items() if all(abs(a - c) > 26 or abs(b - d) > 14 for c, d in taken)
        ]
        right, up = free[0] if free else CORNERS[0]
        taken.append(centres[right, up])
        axes.annotate(
            text,
            (x, y),
            xytext=(4 * right, 4 * up),
            textcoords="offset points",
            ha="right" if right < 0 else "left",
            va="top" if up < 0 else "bottom",
            fontsize=8.5,
            fontweight="bold" if own else "normal",
        )


def _arms(place: float, bar: Estimate, origin: float) -> list[list[float]]:
    """Lengths of an error bar around `place` for an interval that is measured from `origin`."""
    return [[max(place - origin - bar.lo, 0.0)], [max(bar.hi + origin - place, 0.0)]]
