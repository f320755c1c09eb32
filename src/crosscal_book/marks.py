"""Marks: every figure is drawn from a tidy frame, each line of it one point with its interval, and nothing else.

Columns that the marks read: `method` (or another `series`: colour and marker), `panel` and `facet` (columns and rows
of the grid), `name` (the row of a forest), `x` with `x_lo` and `x_hi`, `value` with `lo` and `hi`. Other columns
(`run_id`, `target`, `calibration`, `weight`, `n`, `p_holm`, `unit`, ...) travel with them: the numbers below a figure
are this very frame. Points, lines and tables of colours are seaborn's; intervals that are already known are drawn by
matplotlib, because seaborn would compute its own.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes

from crosscal_book.drawing import (
    Axes_,
    Drawing,
    _about,
    _apart,
    _axis_of,
    _canvas,
    _column,
    _grid,
    _in_order,
    _key,
    _look,
    _name_axes,
    _plain,
    _scale,
    _settle,
    _split,
    _values,
)
from crosscal_book.style import STYLES, MethodStyle, spread


def sentence(words: str) -> Drawing:
    """Return what stands where there is nothing to draw: the sentence that says why."""
    canvas, (axes,) = _canvas(1, 1, 6.4, 0.9)
    axes.set_axis_off()
    axes.text(0, 0.5, textwrap.fill(words, 80), va="center")
    return Drawing(canvas, pd.DataFrame())


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
    hollow, labels, frame = _aligned(hollow), _aligned(labels), frame.reset_index(drop=True)
    facets = {f: list(dict.fromkeys(part["name"])) for f, part in _split(frame, "facet")}
    heights = [len(names) + 1.0 for names in facets.values()]
    many = len(facets) > 1
    columns = columns or len(_values(frame, "panel"))
    bands = 1 if many else -(-len(_values(frame, "panel")) // columns)
    share = {"sharex": "row" if many else False, "sharey": "row", "gridspec_kw": {"height_ratios": heights * bands}}
    height = size[1] * sum(heights) * bands + (0.7 if many else bands * (1.0 - size[1]))
    canvas, grid = _grid(frame, columns, size[0], height, share, "edges" if many else title)
    order = _in_order(_values(frame, series), looks)
    places = dict(zip(order, _apart(len(order), 0.72 if key else 0.0), strict=True))
    for (facet, panel), (axes, part) in grid.items():
        names, axis = facets[facet], _axis_of(x, panel)
        _scale(axes, axis, "x")
        rows = part["name"].map(names.index).astype(float) + (part[series].map(places) if series in part else 0.0)
        drawn = part.assign(_x=part["value"], _y=rows)
        _points(axes, drawn, series, looks, hollow, {"lo": "_x"})
        for at, row, word in zip(drawn["_x"], rows, labels.loc[part.index], strict=True) if labels is not None else ():
            axes.annotate(word, (at, row), (0, 5), textcoords="offset points", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in bold else "normal")
    _settle(grid, x, "x")
    _name_axes(canvas, grid, x, None)
    if key:
        _key(canvas, order, looks, _open_series(frame, series, hollow))
    return Drawing(canvas, frame, _about(frame, {"value": x}))


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
    line, hollow, labels = (_aligned(given) for given in (line, hollow, labels))
    frame = frame.reset_index(drop=True)
    if isinstance(line, str):
        line = frame[series] if series in frame else pd.Series("all", frame.index)
    columns = len(_values(frame, "panel")) if "facet" in frame else columns
    rows = len(_values(frame, "facet")) if "facet" in frame else -(-len(_values(frame, "panel")) // columns)
    height = size[1] * rows
    canvas, grid = _grid(frame, columns, size[0], height, {"sharex": share[0], "sharey": share[1]}, title)
    targets = _target_places(frame[across]) if not pd.api.types.is_numeric_dtype(frame[across]) else None
    order = _in_order(_values(frame, series), looks)
    apart = dict(zip(order, _apart(len(order), aside * len(order)), strict=True))
    last: dict[Axes, pd.DataFrame] = {}
    for number, ((_, panel), (axes, part)) in enumerate(grid.items()):
        over, up = _axis_of(x, panel), _axis_of(y, panel)
        _scale(axes, over, "x")
        _scale(axes, up, "y")
        places = part[across].map(targets) if targets else part[across].astype(float)
        shift = part[series].map(apart) if series in part and aside else 0.0
        drawn = part.assign(_x=places * (1 + shift) if over.log else places + shift, _y=part["value"])
        if line is not None:
            drawn = drawn.assign(_line=line.loc[part.index])
            _join(axes, drawn if path else drawn.sort_values("_x"), series, looks, hollow)
        _points(axes, drawn, series, looks, hollow, {"lo": "_y"} | ({"x_lo": "_x"} if "x_lo" in part else {}))
        if targets:
            _target_axis(axes, targets)
        if (number + 1) % columns == 0 or number == len(grid) - 1:
            last[axes] = drawn if line is None else drawn[drawn["_line"] != ""]
    _settle(grid, y, "y")
    _settle(grid, x, "x", keep_ticks=bool(targets))
    _name_axes(canvas, grid, x, y)
    if labels is not None or ends:
        canvas.draw_without_rendering()  # settles limits and layout, so that places in pixels are final
    if labels is not None:
        for axes, part in grid.values():
            _label_points(axes, part.assign(_label=labels.loc[part.index]), across, targets, series, looks)
    if ends and series in frame:
        for axes, drawn in last.items():
            _name_ends(axes, drawn, series, looks)
    if key:
        _key(canvas, order, looks, _open_series(frame, series, hollow))
    return Drawing(canvas, frame, _about(frame, {across: x, "value": y}))


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
    rows, columns = _values(frame, "name"), _values(frame, "panel")
    canvas, (axes,) = _canvas(1, 1, 6.6, 0.8 + 0.46 * len(rows))
    table = frame.pivot(index="name", columns="panel", values=shade).loc[rows, columns]
    text = frame.assign(_text=frame.apply(write, axis=1)).pivot(index="name", columns="panel", values="_text")
    gain = matplotlib.colors.LinearSegmentedColormap.from_list("gain", ["#7fb3d5", "#ffffff", "#f0a878"])
    bar = {"label": colours, "extend": "both", "fraction": 0.035, "pad": 0.02}
    look = {"color": "black", "fontsize": 8.5}
    seaborn.heatmap(table, annot=text.loc[rows, columns], fmt="", cmap=gain, vmin=-limit, vmax=limit, ax=axes,
                    cbar_kws=bar, annot_kws=look)  # fmt: skip
    for line in frame[framed].to_dict("records") if framed is not None else ():
        corner = columns.index(line["panel"]) + 0.03, rows.index(line["name"]) + 0.04
        axes.add_patch(matplotlib.patches.Rectangle(corner, 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.8))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel=labels[1], ylabel=labels[0])
    axes.tick_params(length=0, rotation=0)
    return Drawing(canvas, frame, {"value": labels[1], shade: colours})


def _join(axes: Axes, drawn: pd.DataFrame, series: str, looks, hollow: pd.Series | None) -> None:
    """The lines between points: solid, or dashed between hollow ones."""
    joined = drawn[(drawn["_line"] != "") & drawn["_y"].notna()]
    if len(joined):
        joined = joined.assign(_series=_column(joined, series))
        open_lines = hollow.loc[joined.index].groupby(joined["_line"]).transform("all") if hollow is not None else False
        palette = {name: _look(looks, name).colour for name in joined["_series"].unique()}
        joined = joined.assign(_dash=np.where(open_lines, "dashed", "solid"))
        seaborn.lineplot(joined, x="_x", y="_y", hue="_series", units="_line", style="_dash", estimator=None,
                         errorbar=None, palette=palette, dashes={"solid": "", "dashed": (4, 2)}, sort=False,
                         legend=False, linewidth=1.3, ax=axes)  # fmt: skip


def _points(axes: Axes, drawn: pd.DataFrame, series: str, looks, hollow: pd.Series | None, bars: Mapping) -> None:
    """Markers, filled or open, and the intervals in the directions that `bars` names."""
    drawn = drawn[drawn["_x"].notna() & drawn["_y"].notna()]
    drawn = drawn.assign(_series=_column(drawn, series))
    styles = {name: _look(looks, name) for name in drawn["_series"].unique()}
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
        marks = axes.collections[-1]
        faces = colours if hollow is None else np.where(hollow.loc[drawn.index], "white", colours)
        marks.set(facecolors=list(faces), edgecolors=colours, linewidths=0.9)
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


def _name_ends(axes: Axes, drawn: pd.DataFrame, series: str, looks) -> None:
    """Each series' name at the right edge, at the height of its last point."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = drawn.assign(_at=to_axes.transform(drawn[["_x", "_y"]].to_numpy(dtype=float))[:, 0]).sort_values("_at")
    names = _in_order(list(dict.fromkeys(right[series].astype(str))), looks)
    last = right.groupby(right[series].astype(str))["_y"].last()
    heights = [min(max(to_axes.transform((right["_x"].iloc[-1], last[name]))[1], 0.02), 0.98) for name in names]
    gap = 10.5 / max(axes.get_window_extent().height * 72 / axes.figure.dpi, 1)
    for name, height in zip(names, spread(heights, gap), strict=True):
        look = _look(looks, name)
        axes.text(1.02, height, look.label, color=look.colour, transform=axes.transAxes, va="center", fontweight="bold")


# Pixels from a point to its label, best place first.
OFFSETS = [(dx * 9, dy) for dy in (7, -7, 16, -16, 27, -27) for dx in (1, -1)]


def _label_points(axes: Axes, part: pd.DataFrame, across: str, targets, series: str, looks) -> None:
    """Texts beside points, each where it covers no point and no other text; the first place where none is free."""
    x = part[across].map(targets) if targets else part[across]
    places = axes.transData.transform(np.column_stack([x, part["value"]]).astype(float))
    taken = [(a - 5, b - 5, a + 5, b + 5) for a, b in places]
    for (a, b), line, place in zip(places, part.to_dict("records"), zip(x, part["value"], strict=True), strict=True):
        if not line["_label"] or not np.isfinite([a, b]).all():
            continue
        width = 4.6 * len(line["_label"])
        lefts = {(dx, dy): a + (dx if dx > 0 else dx - width) for dx, dy in OFFSETS}
        boxes = {(dx, dy): (left, b + dy - 6, left + width, b + dy + 6) for (dx, dy), left in lefts.items()}
        free = [offset for offset, box in boxes.items() if not any(_overlap(box, other) for other in taken)]
        dx, dy = free[0] if free else OFFSETS[0]
        taken.append(boxes[dx, dy])
        colour = _look(looks, str(line.get(series, ""))).colour
        axes.annotate(line["_label"], place, (0.72 * dx, 0.72 * dy), textcoords="offset points", fontsize=8,
                      ha="left" if dx > 0 else "right", va="center", color=colour)  # fmt: skip


def _open_series(frame: pd.DataFrame, series: str, hollow: pd.Series | None) -> set[str]:
    """The series all of whose points are hollow."""
    return set() if hollow is None or series not in frame else set(frame[series]) - set(frame.loc[~hollow, series])


def _aligned(given):
    """A column that goes with a frame, numbered like the frame's own lines."""
    return given.reset_index(drop=True) if isinstance(given, pd.Series) else given


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
