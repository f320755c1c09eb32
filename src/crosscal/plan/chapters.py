"""The chapters of the study: which runs each needs, in the order in which they matter.

Chapters share runs: a configuration that two of them ask for is computed once. Every grid has three sizes, one for
each preset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from crosscal.plan.maker import Maker, Shares, mixed, only
from crosscal.plan.parameters import (
    CalibrationSettings,
    CrossSettings,
    PruningSettings,
    QuantizationSettings,
    ReportCardSettings,
    Settings,
    parse_shares,
)
from crosscal.types import (
    Grid,
    LowRank,
    NofM,
    PerGroup,
    PerRow,
    RunConfig,
    SparseGrid,
    Target,
    Unstructured,
    parse_target,
)

PRUNING = ("sparsegpt", "wanda", "magnitude")
QUANTIZERS = ("gptq", "rtn", "awq")
THREE_BITS = Grid(3, PerGroup(128))
NINE_BITS = 9 / 16  # low rank that takes as much as 50 % sparsity with its mask
FORGETTING_TASKS = (
    *("common_knowledge", "fact_recall", "sciq", "sciq_reading", "lambada", "agreement", "word_order", "arc_easy"),
    *("sciq_typos", "sciq_rephrased", "arc_easy_typos", "arc_easy_rephrased"),
)
SECOND_MODEL = "gemma3-270m"


def perplexity(make: Maker) -> Iterator[RunConfig]:
    """Chapter 1: pruning methods over sparsity."""
    settings: PruningSettings = make.settings
    shares = parse_shares(settings.calibration)
    half = (Unstructured(0.5), NofM(2, 4))
    rest = (*_percent(20, 60, 30, 70), NofM(4, 8), *_percent(40, 10, 80))
    patterns = list(make.by_size(half[:1], half, (*half, *rest)))
    if Unstructured(settings.sparsity) not in patterns:
        patterns.append(Unstructured(settings.sparsity))
    yield make.dense()
    for pattern in patterns:
        for method in PRUNING:
            yield make(method, pattern, shares)
    for pattern in make.by_size((), (), patterns):
        yield make("dpruner", pattern, mixed("c4", "pubmed", 0.5))
    for sparsity in make.by_size((), (), (0.6, 0.7)):
        for method in ("sparsegpt", "wanda"):
            yield make(method, Unstructured(sparsity), shares, allocation="owl")


def divergence(make: Maker) -> Iterator[RunConfig]:
    """Chapter 2: the noise floor, and every run of the chapters that prune and quantize the same model."""
    yield make.dense()
    yield make("float32")
    base = make.settings
    for chapter in ("perplexity", "quantization", "calibration", "cross_calibration"):
        found = CHAPTERS[chapter]
        own = replace(make, settings=found.settings(**{f: getattr(base, f) for f in Settings.__dataclass_fields__}))
        yield from (c for c in found.configs(own) if c.model == base.model and not c.answers)


def calibration(make: Maker) -> Iterator[RunConfig]:
    """Chapter 3: source, number, length and draw of the calibration text; task data against general data."""
    settings: CalibrationSettings = make.settings
    half, general = Unstructured(settings.sparsity), settings.calibration
    methods = make.by_size(("sparsegpt",), ("sparsegpt",), ("sparsegpt", "wanda"))
    short = {"tasks": make.preset.short_tasks}
    yield make.dense()
    all_sources = ("pubmed", "legal", "wikipedia", "news", "alpaca", "self", "random")
    for source in (general, *make.by_size(("random",), ("pubmed", "random"), all_sources)):
        for method in methods:
            yield make(method, half, only(source), **asked(make, method, only(source), general))
    for seed in make.by_size((1,), (1,), (1, 2, 3, 4)):
        for method in methods:
            yield make(method, half, only(general), seed=settings.seed + seed, **short)
    answers = {"answers": ("alpaca", "squad"), "answer_items": make.preset.answer_items, **short}
    for chosen in make.by_size((), (), (half, Unstructured(0.3))):
        yield make.dense(**answers)
        for method in methods:
            for source in (general, "alpaca"):
                yield make(method, chosen, only(source), **answers)
        yield make("magnitude", chosen, **answers)
    for n_windows, window in make.by_size((), (), ((1, 512), (4, 512), (16, 512), (64, 512), (256, 512))):
        for method in methods:
            yield make(method, half, only(general), n_windows=n_windows, window=window, **short)
    for n_windows, window in make.by_size((), (), ((128, 128), (32, 512), (8, 2048))):
        for method in methods:
            yield make(method, half, only(general), n_windows=n_windows, window=window, **short)
    for source in make.by_size((), (), (general, *all_sources)):
        yield make("gptq", THREE_BITS, only(source), **short)
    for seed in make.by_size((), (), (0, 1, 2, 3, 4)):
        yield make("gptq", THREE_BITS, only(general), seed=settings.seed + seed, **short)
        yield make("sparsegpt", Unstructured(0.7), only(general), seed=settings.seed + seed, **short)
    for source in make.by_size((), (), ("pubmed", "wikipedia", "random")):
        yield make("sparsegpt", Unstructured(0.7), only(source), **short)


def asked(make: Maker, method: str, shares: Shares, general: str) -> dict[str, tuple[str, ...]]:
    """Which tasks a run of the calibration chapters is asked, so that they share runs with each other and chapter 1.

    All tasks where the task's domain is the question (SparseGPT, D-Pruner) and where chapter 1 asks them too (pruning
    on general text); the short ones elsewhere.
    """
    everything = method in ("sparsegpt", "dpruner") or (method in PRUNING and shares == only(general))
    return {"tasks": make.preset.tasks if everything else make.preset.short_tasks}


def cross_calibration(make: Maker) -> Iterator[RunConfig]:
    """Chapter 4: the weight of the domain, in two domains, for pruning and quantization, and on a second model."""
    settings: CrossSettings = make.settings
    general, domains = settings.general, [name.strip() for name in settings.domains.split(",")]
    domains = make.by_size(domains[:1], domains[:1], domains)
    half, short = Unstructured(settings.sparsity), {"tasks": make.preset.short_tasks}
    pairs = [("sparsegpt", half), ("wanda", half), ("gptq", THREE_BITS), ("awq", THREE_BITS)]
    pairs = make.by_size(pairs[:1], pairs[:1], pairs)

    def at_weights(weights: tuple[float, ...], chosen: list[tuple[str, Target]]) -> Iterator[RunConfig]:
        for method, target in chosen:
            for shares in (mixed(general, domain, weight) for weight in weights for domain in domains):
                yield make(method, target, shares, **asked(make, method, shares, general))

    yield make.dense()
    yield from at_weights(make.by_size((0.0, 0.5), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)), pairs)
    if make.preset.at_most("quick"):
        return
    for domain in domains:
        yield make("dpruner", half, mixed(general, domain, 0.5))
    yield make("sparsegpt", half, only(general), n_windows=2 * make.preset.n_windows)
    if len(domains) > 1:
        together = tuple((name, 1 / (1 + len(domains))) for name in (general, *domains))
        yield make("sparsegpt", half, together)
    yield from at_weights((0.25, 0.75), pairs)
    for method, target in (pairs[0], *pairs[2:]):
        for seed, weight, domain in product((1, 2, 3, 4), (0.0, 0.5, 1.0), domains):
            yield make(method, target, mixed(general, domain, weight), seed=settings.seed + seed, **short)
    yield make("wanda", half, only(general), n_windows=2 * make.preset.n_windows, **short)
    if len(domains) > 1:
        for method, target in pairs[1:]:
            yield make(method, target, together, **short)
    # Terms concern the model's weights, not the stored rows of its runs.
    if settings.second_model and (settings.accept_terms or settings.compute == "never"):
        yield from second_model(replace(make, settings=replace(settings, model=settings.second_model)), domains)


def second_model(make: Maker, domains: list[str]) -> Iterator[RunConfig]:
    """The main comparison of chapter 4 on another architecture."""
    settings: CrossSettings = make.settings
    short = {"tasks": make.preset.short_tasks}
    yield make.dense(**short)
    for method in ("sparsegpt", "wanda"):
        for weight in (0.0, 0.5, 1.0):
            for domain in domains:
                shares = mixed(settings.general, domain, weight)
                yield make(method, Unstructured(settings.sparsity), shares, **short)


def quantization(make: Maker) -> Iterator[RunConfig]:
    """Chapter 5: bits, groups, methods; sparse and quantized at equal storage."""
    settings: QuantizationSettings = make.settings
    shares = parse_shares(settings.calibration)
    grids = [THREE_BITS]
    if not make.preset.at_most("quick"):
        grids += [Grid(bits, group) for bits in (4, 2, 3, 8) for group in (PerGroup(128), PerRow())]
    yield make.dense()
    yield make("float32")
    short = {"tasks": make.preset.short_tasks}
    for grid in dict.fromkeys(grids):
        for method in make.by_size(("rtn", "gptq"), QUANTIZERS, QUANTIZERS):
            yield make(method, grid, shares, **short)
    four, three = Grid(4, PerGroup(128)), THREE_BITS
    joint = [(NofM(2, 4), four), (Unstructured(0.5), four), (Unstructured(0.5), three), (Unstructured(0.25), three)]
    for pattern, grid in make.by_size((), (), joint):
        yield make("sparsegpt", SparseGrid(pattern, grid), shares, **short)
    for order in make.by_size((), (), (True,)):
        yield make("gptq", THREE_BITS, shares, options=(("act_order", order),), **short)
        yield make("gptq", Grid(2, PerGroup(128)), shares, options=(("act_order", order),), **short)


def forgetting(make: Maker) -> Iterator[RunConfig]:
    """Chapter 6: knowledge, reading, grammar and robustness, low rank at equal storage included."""
    shares = only("c4")
    pairs: list[tuple[str, Target]] = [("sparsegpt", Unstructured(0.5)), ("asvd", LowRank(NINE_BITS))]
    if not make.preset.at_most("quick"):
        pairs += [("wanda", Unstructured(0.5)), ("gptq", THREE_BITS), ("sparsegpt", Unstructured(0.3))]
        pairs += [("sparsegpt", Unstructured(0.2)), ("wanda", Unstructured(0.2))]  # chapter 1: perplexity is kept
        pairs += [("svd", LowRank(NINE_BITS)), ("fwsvd", LowRank(NINE_BITS)), ("joint_rank", LowRank(NINE_BITS))]
        pairs += [("asvd", LowRank(0.8)), ("magnitude", Unstructured(0.3)), ("magnitude", Unstructured(0.5))]
        pairs += [("rtn", THREE_BITS), ("awq", THREE_BITS), ("wanda", Unstructured(0.3)), ("svd", LowRank(0.8))]
        pairs += [("fwsvd", LowRank(0.8)), ("sparsegpt", Unstructured(0.6))]
    tasks = FORGETTING_TASKS if make.preset.name != "smoke" else ("sciq", "sciq_typos", "agreement")
    yield make.dense(tasks=tasks)
    for method, target in pairs:
        yield make(method, target, shares, tasks=tasks)


def costs(make: Maker) -> Iterator[RunConfig]:
    """Chapter 7: what the same compression costs and gives in each schedule."""
    half = Unstructured(0.5)
    yield make.dense()
    yield make("magnitude", half)
    for method in make.by_size(("sparsegpt",), ("sparsegpt",), ("sparsegpt", "wanda")):
        for schedule in make.by_size(("sublayer",), ("sublayer", "parallel"), ("sublayer", "block", "parallel")):
            tasks = {} if schedule == "sublayer" else {"tasks": make.preset.short_tasks}
            yield make(method, half, only("c4"), schedule=schedule, **tasks)
    for method in make.by_size((), (), QUANTIZERS):
        yield make(method, THREE_BITS, only("c4"), tasks=make.preset.short_tasks)


def report_card(make: Maker) -> Iterator[RunConfig]:
    """Chapter 8: one method, one model, general and own text."""
    settings: ReportCardSettings = make.settings
    target = parse_target(settings.target)
    changes = settings.changes(make.preset.texts, make.preset.tasks)
    yield make.dense(**changes)
    for weight in settings.weights:
        shares = mixed(settings.general, settings.domain, weight)
        yield make(settings.method, target, shares, options=settings.options, **changes)


def _percent(*values: int) -> Iterator[Unstructured]:
    return (Unstructured(value / 100) for value in values)


@dataclass(frozen=True)
class Chapter:
    """A chapter's parameters, its runs, and the notebook that shows them."""

    name: str
    notebook: str
    settings: type[Settings]
    plan: Callable[[Maker], Iterator[RunConfig]]

    def configs(self, make: Maker) -> list[RunConfig]:
        """Its runs, each once, what matters most first."""
        return list(dict.fromkeys(self.plan(make)))


CHAPTERS = {
    chapter.name: chapter
    for chapter in (
        Chapter("perplexity", "01_perplexity_hides_task_loss", PruningSettings, perplexity),
        Chapter("divergence", "02_divergence_tells_more", Settings, divergence),
        Chapter("calibration", "03_calibration_data", CalibrationSettings, calibration),
        Chapter("cross_calibration", "04_cross_calibration", CrossSettings, cross_calibration),
        Chapter("quantization", "05_quantization", QuantizationSettings, quantization),
        Chapter("forgetting", "06_what_is_forgotten", Settings, forgetting),
        Chapter("costs", "07_what_it_costs", Settings, costs),
        Chapter("report_card", "08_your_model", ReportCardSettings, report_card),
    )
}
