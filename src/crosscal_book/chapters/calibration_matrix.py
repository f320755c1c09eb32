"""Chapter 3, the figure of one method's perplexity on every held-out text after every source."""

import math

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle

from crosscal.results.frame import Results
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.calibration_data import (
    PERPLEXITY,
    Evidence,
    Group,
    bounds,
    estimate,
    gap,
    gather,
    name_of,
)
from crosscal_book.chapters.calibration_drawing import (
    source_name,
)
from crosscal_book.style import Figure, finish
from crosscal_book.words import times

FULL_COLOUR = 0.20  # relative perplexity at which the matrix has its full colour; beyond, only the numbers tell


def source_matrix(results: Results, general: str = "c4", focus: str = "50%", method: str = "sparsegpt") -> Figure:
    """One method's perplexity on each held-out text (columns) after each source (rows); own text framed."""
    evidence, group = gather(results, general), (method, focus)
    sources = evidence.sources(group)
    if len(sources) < 2 or general not in sources:
        return sentence_figure("fig-matrix", f"{name_of(group)} was not calibrated on {general} and another source.")
    texts = list(evidence.results.only(metric="perplexity", run_id=evidence.results.dense_id)["eval_set"])
    canvas, (axes,) = panels(1, 1, 6.6, 0.8 + 0.46 * len(sources))
    shade = np.zeros((len(sources), len(texts)))
    best = []
    for column, text in enumerate(texts):
        for row, source in enumerate(sources):
            found = estimate(gap(evidence, evidence.draws(group, source), [], PERPLEXITY, (text,)), np.exp)
            beside = _beside(evidence, group, source, general, text)
            shade[row, column] = math.expm1(beside)
            axes.text(column, row - 0.14, times(found.value), ha="center", va="center", fontsize=9.5)
            axes.text(column, row + 0.24, bounds(found, " to "), ha="center", va="center", fontsize=8)
            if source == text:
                frame = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="black", linewidth=1.8)
                axes.add_patch(frame)
        row = int(shade[:, column].argmin())
        best.append(f"{texts[column]}: {sources[row]}")
    colours = matplotlib.colors.LinearSegmentedColormap.from_list("gain", ["#7fb3d5", "#ffffff", "#f0a878"])
    drawn = axes.imshow(100 * shade, cmap=colours, vmin=-100 * FULL_COLOUR, vmax=100 * FULL_COLOUR, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(texts)), [t.replace("_", " ") for t in texts])
    axes.set_yticks(range(len(sources)), [source_name(s) for s in sources])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("perplexity on held-out text / dense perplexity")
    axes.set_ylabel("calibration source")
    axes.tick_params(length=0)
    bar = canvas.colorbar(drawn, ax=axes, fraction=0.035, pad=0.02, extend="both")
    bar.set_label(f"beside {general} (%)")
    own = [t for t in texts if t in sources]
    won = sum(entry == f"{t}: {t}" for entry, t in zip(best, texts, strict=True) if t in own)
    found = f"The own text gives the lowest perplexity on {won} of {len(own)} texts with an own source"
    caption = (
        f"{name_of(group)}: perplexity beside the dense model's by calibration source (rows) and held-out text "
        f"(columns); framed: the text's own source. {found}. Lowest in each column: {'; '.join(best)}. Colour: beside "
        f"calibration on {general}. Below each value its 95 % interval over windows and calibration draws."
    )
    return finish(canvas, "fig-matrix", caption, f"Table of {len(sources)} sources by {len(texts)} texts. {found}.")


def _beside(evidence: Evidence, group: Group, source: str, general: str, text: str) -> float:
    if source == general:
        return 0.0
    change = gap(evidence, evidence.draws(group, source), evidence.draws(group, general), PERPLEXITY, (text,))
    return float(change[0])
