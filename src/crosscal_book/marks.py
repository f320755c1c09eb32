"""Marks: every figure is drawn from a tidy frame, each line of it one point with its interval, and nothing else.

Columns that the marks read: `method` (or another `series`: colour and marker), `panel` and `facet` (columns and rows
of the grid), `name` (the row of a forest), `x` with `x_lo` and `x_hi`, `value` with `lo` and `hi`. Other columns
(`run_id`, `target`, `calibration`, `weight`, `n`, `p_holm`, `unit`, ...) travel with them: the numbers below a figure
are this very frame. Points, lines and tables of colours are seaborn's; intervals that are already known are drawn by
matplotlib, because seaborn would compute its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from crosscal_book.drawing import Axes_, Drawing, Panels, open_canvas
from crosscal_book.style import STYLES, MethodStyle


def forest(
    frame: pd.DataFrame,
    x: Axes_,
    *,
    size: tuple[float, float] = (6.6, 0.28),
    series: str = "method",
    looks: Mapping[str, MethodStyle] = STYLES,
    hollow: pd.Series | None = None,
    key: bool = False,
    title: str | None = None,
    bold: Sequence[str] = (),
    columns: int = 0,
    labels: pd.Series | None = None,
) -> Drawing:
    """Draw values with intervals in named rows: one axis `x` per panel, rows of a facet's own names.

    `size` is the width and the height of a row; `hollow` marks open points, `bold` the rows of means, `labels` are
    words above points. Panels stand side by side, or in so many `columns`.
    """
    panels = Panels(frame, series, looks, columns, hollow, labels)
    facets = {f: list(dict.fromkeys(part["name"])) for f, part in panels.lines.groupby("_facet", sort=False)}
    many, heights = len(facets) > 1, [len(names) + 1.0 for names in facets.values()]
    heights *= 1 if many else panels.rows
    height = size[1] * sum(heights) + (0.7 if many else panels.rows * (1.0 - size[1]))
    share = {"sharex": "row" if many else False, "sharey": "row", "gridspec_kw": {"height_ratios": heights}}
    panels.open((size[0], height), "edges" if many else title, **share)
    places = panels.apart(0.72 if key else 0.0)
    for facet, panel, axes, part in panels.grid:
        names = facets[facet]
        panels.axis(x, panel).scale(axes, "x")
        rows = part["name"].map(names.index).astype(float) + part["_series"].map(places)
        drawn = part.assign(_x=part["value"], _y=rows)
        _points(axes, drawn, panels, {"lo": "_x"})
        for line in drawn[drawn["_label"] != ""].to_dict("records"):
            at = line["_x"], line["_y"]
            axes.annotate(line["_label"], at, (0, 5), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in bold else "normal")
    panels.finish(x, None)
    if key:
        panels.key()
    return panels.drawing(value=x)


def lines(
    frame: pd.DataFrame,
    x: Axes_,
    y: Axes_,
    *,
    across: str = "x",
    size: tuple[float, float] = (6.4, 3.1),
    columns: int = 1,
    share: tuple[object, object] = (True, False),
    series: str = "method",
    looks: Mapping[str, MethodStyle] = STYLES,
    line: pd.Series | str | None = "",
    hollow: pd.Series | None = None,
    labels: pd.Series | None = None,
    path: bool = False,
    aside: float = 0.0,
    ends: bool = True,
    key: bool = False,
    title: str | None = None,
) -> Drawing:
    """Draw values with intervals over the column `across`, joined by `line`, and name each series at the right edge.

    `line` says for every point which line it is on ("" for none; dashed where its points are `hollow`); left out, each
    series is one. A line goes from left to right, or as a `path` in the frame's order. `labels` are texts beside
    points, `aside` how far series stand apart. Where `across` holds targets, percentages are to scale and N:M patterns
    have columns of their own. `size` is that of a row of panels.
    """
    panels = Panels(frame, series, looks, columns, hollow, labels)
    own = panels.lines["_series"] if series in frame else "all"
    panels.lines["_line"] = own if isinstance(line, str) else "" if line is None else np.asarray(line)
    panels.open((size[0], size[1] * panels.rows), title, sharex=share[0], sharey=share[1])
    targets = None if pd.api.types.is_numeric_dtype(frame[across]) else _target_places(frame[across])
    apart = panels.apart(aside * len(panels.order))
    placed: list[tuple[Axes, pd.DataFrame]] = []
    for _, panel, axes, part in panels.grid:
        over = panels.axis(x, panel)
        over.scale(axes, "x")
        panels.axis(y, panel).scale(axes, "y")
        places = part[across].map(targets) if targets else part[across].astype(float)
        shift = part["_series"].map(apart)
        drawn = part.assign(_x=places * (1 + shift) if over.log else places + shift, _y=part["value"], _across=places)
        _join(axes, drawn if path else drawn.sort_values("_x"), panels)
        _points(axes, drawn, panels, {"lo": "_y"} | ({"x_lo": "_x"} if "x_lo" in part else {}))
        if targets:
            _target_axis(axes, targets)
        placed.append((axes, drawn))
    panels.finish(x, y, keep_ticks=bool(targets))
    if labels is not None or ends:
        panels.canvas.draw_without_rendering()  # settles limits and layout, so that places in pixels are final
    for number, (axes, drawn) in enumerate(placed, 1):
        _label_points(axes, drawn, panels)
        if ends and series in frame and (number % panels.columns == 0 or number == len(placed)):
            _name_ends(axes, drawn if line is None else drawn[drawn["_line"] != ""], panels)
    if key:
        panels.key()
    return panels.drawing(**{across: x, "value": y})


def scatter(frame: pd.DataFrame, x: Axes_, y: Axes_, *, key: bool = True, **options) -> Drawing:
    """Draw values over `x` with the intervals of both, unjoined; options are those of `lines`."""
    return lines(frame, x, y, line=None, ends=False, key=key, **options)


def matrix(
    frame: pd.DataFrame,
    labels: tuple[str, str],
    write: Callable[[pd.Series], str],
    *,
    shade: str,
    limit: float,
    colours: str,
    framed: pd.Series | None = None,
) -> Drawing:
    """Draw a table of colours, `name` by `panel`: colour by the column `shade` up to `limit`, text by `write`.

    `labels` are those of rows and columns, `colours` that of the colour bar; cells that are `framed` have a border.
    """
    rows, columns = (list(dict.fromkeys(frame[name])) for name in ("name", "panel"))
    canvas, (axes,) = open_canvas(1, 1, (6.6, 0.8 + 0.46 * len(rows)))
    table = frame.pivot(index="name", columns="panel", values=shade).loc[rows, columns]
    text = frame.assign(_text=frame.apply(write, axis=1)).pivot(index="name", columns="panel", values="_text")
    gain = LinearSegmentedColormap.from_list("gain", ["#7fb3d5", "#ffffff", "#f0a878"])
    bar = {"label": colours, "extend": "both", "fraction": 0.035, "pad": 0.02}
    look = {"color": "black", "fontsize": 8.5}
    seaborn.heatmap(table, annot=text.loc[rows, columns], fmt="", cmap=gain, vmin=-limit, vmax=limit, ax=axes,
                    cbar_kws=bar, annot_kws=look)  # fmt: skip
    for line in frame[framed].to_dict("records") if framed is not None else ():
        corner = columns.index(line["panel"]) + 0.03, rows.index(line["name"]) + 0.04
        axes.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.8))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel=labels[1], ylabel=labels[0])
    axes.tick_params(length=0, rotation=0)
    return Drawing(canvas, frame, {"value": labels[1], shade: colours})


def _join(axes: Axes, drawn: pd.DataFrame, panels: Panels) -> None:
    """The lines between points: solid, or dashed between hollow ones."""
    joined = drawn[(drawn["_line"] != "") & drawn["_y"].notna()]
    if len(joined):
        open_lines = joined.groupby("_line")["_hollow"].transform("all")
        joined = joined.assign(_dash=np.where(open_lines, "dashed", "solid"))
        palette = {name: panels.look(name).colour for name in joined["_series"].unique()}
        dashes: Any = {"solid": "", "dashed": (4, 2)}
        seaborn.lineplot(joined, x="_x", y="_y", hue="_series", units="_line", style="_dash", estimator=None,
                         errorbar=None, palette=palette, dashes=dashes, sort=False, legend=False, linewidth=1.3,
                         ax=axes)  # fmt: skip


def _points(axes: Axes, drawn: pd.DataFrame, panels: Panels, bars: Mapping[str, str]) -> None:
    """Markers, filled or open, and the intervals in the directions that `bars` names."""
    drawn = drawn[drawn["_x"].notna() & drawn["_y"].notna()]
    styles = {name: panels.look(name) for name in drawn["_series"].unique()}
    colours = [styles[name].colour for name in drawn["_series"]]
    for low, direction in bars.items():
        if low in drawn:
            shift = drawn[direction] - (drawn["value"] if low == "lo" else drawn["x"])
            ends = [drawn[end] + shift for end in (low, low.replace("lo", "hi"))]
            draw = axes.hlines if direction == "_x" else axes.vlines
            draw(drawn["_y" if direction == "_x" else "_x"], *ends, colors=colours, linewidth=1)
    if len(drawn):
        seaborn.scatterplot(drawn, x="_x", y="_y", hue="_series", style="_series", legend=False, s=34, ax=axes,
                            palette={name: style.colour for name, style in styles.items()},
                            markers={name: style.marker for name, style in styles.items()}, zorder=3)  # fmt: skip
        faces = list(np.where(drawn["_hollow"], "white", colours))
        axes.collections[-1].set(facecolors=faces, edgecolors=colours, linewidths=0.9)
    axes.set(xlabel="", ylabel="")


def _target_places(targets: pd.Series) -> dict[str, float]:
    """Where each target stands: percentages to scale, N:M patterns in columns of their own behind them."""
    percent = {t: float(t.rstrip("%")) for t in sorted(targets.unique(), key=target_order) if ":" not in t}
    patterns = sorted((t for t in targets.unique() if ":" in t), key=target_order)
    first = max(percent.values(), default=0) + 11
    return percent | {t: first + 11 * number for number, t in enumerate(patterns)}


def target_order(target: str) -> tuple[float, float]:
    """Return the sorting key of a written sparsity: percentages by size, then N:M patterns, the freest first.

    >>> sorted(["2:4", "70%", "4:8", "5%"], key=target_order)
    ['5%', '70%', '4:8', '2:4']
    """
    return (1.0, -float(target.split(":")[1])) if ":" in target else (0.0, float(target.rstrip("%")))


def _target_axis(axes: Axes, places: Mapping[str, float]) -> None:
    """Ticks, and a thin rule before the N:M columns."""
    percent, patterns = ([t for t in places if (":" in t) == grouped] for grouped in (False, True))
    shown = [*(percent if len(percent) <= 6 else percent[::2]), *patterns]
    axes.set_xticks([places[t] for t in shown], [t.replace("%", "") for t in shown])
    axes.set_xlim(min(places.values()) - 3, max(places.values()) + 3)
    if patterns and percent:
        axes.axvline(places[patterns[0]] - 5.5, color="#bbbbbb", linewidth=0.8)


def _name_ends(axes: Axes, drawn: pd.DataFrame, panels: Panels) -> None:
    """Each series' name at the right edge, at the height of its last point."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = drawn.assign(_at=to_axes.transform(drawn[["_x", "_y"]].to_numpy(dtype=float))[:, 0]).sort_values("_at")
    last = right.groupby("_series")["_y"].last()
    names = [name for name in panels.order if name in last]
    heights = [min(max(to_axes.transform((right["_x"].iloc[-1], last[name]))[1], 0.02), 0.98) for name in names]
    gap = 10.5 / max(axes.get_window_extent().height * 72 / panels.canvas.dpi, 1)
    for name, height in zip(names, _spread(heights, gap), strict=True):
        look, place = panels.look(name), axes.transAxes
        axes.text(1.02, height, look.label, color=look.colour, transform=place, va="center", fontweight="bold")


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near `values`, in their order, at least `gap` apart: for labels that must not overlap.

    >>> _spread([0.50, 0.51], 0.10)
    [0.455, 0.555]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [values[i] for i in order]
    for _ in range(100):
        moved = False
        for k in range(len(placed) - 1):
            overlap = gap - (placed[k + 1] - placed[k])
            if overlap > 1e-9:
                placed[k] -= overlap / 2
                placed[k + 1] += overlap / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(values)
    for i, position in zip(order, placed, strict=True):
        result[i] = round(position, 6)
    return result


# Pixels from a point to its label, best place first.
OFFSETS = [(dx * 9, dy) for dy in (7, -7, 16, -16, 27, -27) for dx in (1, -1)]


def _label_points(axes: Axes, drawn: pd.DataFrame, panels: Panels) -> None:
    """Texts beside points, each where it covers no point and no other text; the first place where none is free."""
    spots = drawn[["_across", "_y"]].to_numpy(dtype=float)
    places = axes.transData.transform(spots)
    taken = [(a - 5, b - 5, a + 5, b + 5) for a, b in places]
    for (a, b), spot, line in zip(places, spots, drawn.to_dict("records"), strict=True):
        if not line["_label"] or not np.isfinite([a, b]).all():
            continue
        width = 4.6 * len(line["_label"])
        lefts = {(dx, dy): a + (dx if dx > 0 else dx - width) for dx, dy in OFFSETS}
        boxes = {(dx, dy): (left, b + dy - 6, left + width, b + dy + 6) for (dx, dy), left in lefts.items()}
        free = [offset for offset, box in boxes.items() if not any(_overlap(box, other) for other in taken)]
        dx, dy = free[0] if free else OFFSETS[0]
        taken.append(boxes[dx, dy])
        look: dict[str, Any] = {"fontsize": 8, "va": "center", "color": panels.look(line["_series"]).colour}
        axes.annotate(line["_label"], (spot[0], spot[1]), (0.72 * dx, 0.72 * dy), textcoords="offset points",
                      ha="left" if dx > 0 else "right", **look)  # fmt: skip


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
