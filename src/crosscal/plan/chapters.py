"""The chapters of the study: which runs each needs, in the order in which they matter.

Chapters share runs: a configuration that two of them ask for is computed once. Every grid has three sizes, one for
each preset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, TypeVar

from crosscal.plan.parameters import (
    PRESETS,
    TASK_PROMPTS,
    CalibrationSettings,
    CrossSettings,
    LossAwareSettings,
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
_QUANTIZERS = ("gptq", "rtn", "awq")
_HALF = Unstructured(0.5)
_THREE_BITS = Grid(3, PerGroup(128))
_NINE_BITS = LowRank(9 / 16)  # takes as much as 50 % sparsity with its mask
_GIVEN_ORDER = (("act_order", False),)
_FORGETTING_TASKS = (
    *("common_knowledge", "fact_recall", "sciq", "sciq_reading", "lambada", "agreement", "word_order", "arc_easy"),
    *("sciq_typos", "sciq_rephrased", "arc_easy_typos", "arc_easy_rephrased"),
)
T = TypeVar("T")
_Shares = tuple[tuple[str, float], ...]
_DATA_FREE = ("dense", "float32", "magnitude", "rtn", "svd", "joint_rank")


@dataclass(frozen=True)
class Maker:
    """Makes run configurations that share a model, a preset's sizes, a device and a seed."""

    settings: Any
    device: str = "auto"
    dtype: str = "auto"

    @property
    def preset(self):
        """The preset of the settings."""
        return PRESETS[self.settings.preset]

    @property
    def short(self) -> dict[str, tuple[str, ...]]:
        """The change of a run that is asked the short tasks only."""
        return {"tasks": self.preset.short_tasks}

    def by_size(self, smoke: T, quick: T, full: T) -> T:
        """The entry for this preset."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.settings.preset]

    def __call__(self, method: str, target: Target | None = None, shares: _Shares = (), **changes) -> RunConfig:
        """One run; methods that need no text get none, whatever `shares` says.

        A run that is asked other tasks than the preset's reads no task prompts: they are made of the tasks asked, so
        they would be another text than that of the other runs. GPTQ takes columns in the given order unless `options`
        say otherwise: so it did in all runs of the first edition, and chapter 5 compares the orders.
        """
        preset = self.preset
        changes = {"options": _GIVEN_ORDER if method == "gptq" else (), **changes}
        if changes.get("tasks", preset.tasks) != preset.tasks:
            changes = {"texts": tuple(text for text in preset.texts if text != TASK_PROMPTS), **changes}
        config = RunConfig(
            model=self.settings.model,
            method=method,
            target=target or Unstructured(0.0),
            calibration=() if method in _DATA_FREE else shares,
            n_windows=preset.n_windows,
            window=preset.window,
            seed=self.settings.seed,
            texts=preset.texts,
            eval_windows=preset.eval_windows,
            eval_window=preset.eval_window,
            tasks=preset.tasks,
            task_items=preset.task_items,
            device=self.device,
            dtype="float32" if method == "float32" else self.dtype,
        )
        return replace(config, **changes)

    def dense(self, **changes) -> RunConfig:
        """The model as it is."""
        return self("dense", **changes)


def _only(source: str) -> _Shares:
    return ((source, 1.0),)


def _mixed(general: str, domain: str, weight: float) -> _Shares:
    """Cross-calibration with `weight` on the domain; at 0 and 1 one source alone.

    >>> _mixed("c4", "pubmed", 0.5), _mixed("c4", "pubmed", 1.0)
    ((('c4', 0.5), ('pubmed', 0.5)), (('pubmed', 1.0),))
    """
    if weight in (0.0, 1.0):
        return _only(domain if weight else general)
    return ((general, 1.0 - weight), (domain, weight))


def _perplexity(make: Maker) -> Iterator[RunConfig]:
    """Chapter 1: pruning methods over sparsity."""
    settings: PruningSettings = make.settings
    shares = parse_shares(settings.calibration)
    half = (_HALF, NofM(2, 4))
    rest = (*_percent(20, 60, 30, 70), NofM(4, 8), *_percent(40, 10, 80))
    patterns = dict.fromkeys((*make.by_size(half[:1], half, (*half, *rest)), Unstructured(settings.sparsity)))
    yield make.dense()
    yield from (make(method, pattern, shares) for pattern in patterns for method in PRUNING)
    for pattern in make.by_size((), (), patterns):
        yield make("dpruner", pattern, _mixed("c4", "pubmed", 0.5))
    for target in make.by_size((), (), _percent(60, 70)):
        yield from (make(method, target, shares, allocation="owl") for method in ("sparsegpt", "wanda"))


def _divergence(make: Maker) -> Iterator[RunConfig]:
    """Chapter 2: the noise floor, and every run of the chapters that prune and quantize the same model."""
    yield make.dense()
    yield make("float32")
    base = make.settings
    for name in ("perplexity", "quantization", "calibration", "cross_calibration"):
        settings = CHAPTERS[name].settings(**{known.name: getattr(base, known.name) for known in fields(Settings)})
        configs = CHAPTERS[name].configs(replace(make, settings=settings))
        yield from (config for config in configs if config.model == base.model and not config.answers)


def _calibration(make: Maker) -> Iterator[RunConfig]:
    """Chapter 3: source, number, length and draw of the calibration text; task data against general data."""
    settings: CalibrationSettings = make.settings
    target, general, short = Unstructured(settings.sparsity), settings.calibration, make.short
    methods = make.by_size(("sparsegpt",), ("sparsegpt",), ("sparsegpt", "wanda"))
    yield make.dense()
    all_sources = ("pubmed", "legal", "wikipedia", "news", "alpaca", "self", "random")
    for source in (general, *make.by_size(("random",), ("pubmed", "random"), all_sources)):
        for method in methods:
            yield make(method, target, _only(source), **_asked(make, method, _only(source), general))
    for seed in make.by_size((1,), (1,), (1, 2, 3, 4)):
        yield from (make(m, target, _only(general), seed=settings.seed + seed, **short) for m in methods)
    answers = {"answers": ("alpaca", "squad"), "answer_items": make.preset.answer_items, **short}
    for chosen in make.by_size((), (), (target, Unstructured(0.3))):
        yield make.dense(**answers)
        for method, source in product(methods, (general, "alpaca")):
            yield make(method, chosen, _only(source), **answers)
        yield make("magnitude", chosen, **answers)
    sizes = ((1, 512), (4, 512), (16, 512), (64, 512), (256, 512), (128, 128), (32, 512), (8, 2048))
    for n_windows, window in make.by_size((), (), sizes):
        yield from (make(m, target, _only(general), n_windows=n_windows, window=window, **short) for m in methods)
    for source in make.by_size((), (), (general, *all_sources)):
        yield make("gptq", _THREE_BITS, _only(source), **short)
    for seed in make.by_size((), (), (0, 1, 2, 3, 4)):
        yield make("gptq", _THREE_BITS, _only(general), seed=settings.seed + seed, **short)
        yield make("sparsegpt", Unstructured(0.7), _only(general), seed=settings.seed + seed, **short)
    for source in make.by_size((), (), ("pubmed", "wikipedia", "random")):
        yield make("sparsegpt", Unstructured(0.7), _only(source), **short)


def _asked(make: Maker, method: str, shares: _Shares, general: str) -> dict[str, tuple[str, ...]]:
    """Which tasks a run of the calibration chapters is asked, so that they share runs with each other and chapter 1.

    All tasks where the task's domain is the question (SparseGPT, D-Pruner) and where chapter 1 asks them too (pruning
    on general text); the short ones elsewhere.
    """
    everything = method in ("sparsegpt", "dpruner") or (method in PRUNING and shares == _only(general))
    return {"tasks": make.preset.tasks} if everything else make.short


def _cross_calibration(make: Maker) -> Iterator[RunConfig]:
    """Chapter 4: the weight of the domain, in two domains, for pruning and quantization, and on a second model."""
    settings: CrossSettings = make.settings
    general, domains = settings.general, [name.strip() for name in settings.domains.split(",")]
    domains = make.by_size(domains[:1], domains[:1], domains)
    half, short, more = Unstructured(settings.sparsity), make.short, {"n_windows": 2 * make.preset.n_windows}
    pairs = [("sparsegpt", half), ("wanda", half), ("gptq", _THREE_BITS), ("awq", _THREE_BITS)]
    pairs = make.by_size(pairs[:1], pairs[:1], pairs)

    def at_weights(*weights: float) -> Iterator[RunConfig]:
        for (method, target), weight, domain in product(pairs, weights, domains):
            shares = _mixed(general, domain, weight)
            yield make(method, target, shares, **_asked(make, method, shares, general))

    yield make.dense()
    yield from at_weights(*make.by_size((0.0, 0.5), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)))
    if settings.preset != "full":
        return
    yield from (make("dpruner", half, _mixed(general, domain, 0.5)) for domain in domains)
    yield make("sparsegpt", half, _only(general), **more)
    together = tuple((name, 1 / (1 + len(domains))) for name in (general, *domains)) if len(domains) > 1 else ()
    if together:
        yield make("sparsegpt", half, together)
    yield from at_weights(0.25, 0.75)
    for (method, target), seed in product((pairs[0], *pairs[2:]), (1, 2, 3, 4)):
        for weight, domain in product((0.0, 0.5, 1.0), domains):
            yield make(method, target, _mixed(general, domain, weight), seed=settings.seed + seed, **short)
    yield make("wanda", half, _only(general), **more, **short)
    if together:
        yield from (make(method, target, together, **short) for method, target in pairs[1:])
    # Terms concern the model's weights, not the stored rows of its runs.
    if settings.second_model and (settings.accept_terms or settings.compute == "never"):
        second = replace(make, settings=replace(settings, model=settings.second_model))
        yield second.dense(**short)
        for method, weight, domain in product(("sparsegpt", "wanda"), (0.0, 0.5, 1.0), domains):
            yield second(method, half, _mixed(general, domain, weight), **short)


def _quantization(make: Maker) -> Iterator[RunConfig]:
    """Chapter 5: bits, groups, methods; sparse and quantized at equal storage."""
    settings: QuantizationSettings = make.settings
    shares, short = parse_shares(settings.calibration), make.short
    grids = [Grid(bits, group) for bits in (4, 2, 3, 8) for group in (PerGroup(128), PerRow())]
    yield make.dense()
    yield make("float32")
    for grid in dict.fromkeys((_THREE_BITS, *make.by_size([], [], grids))):
        for method in make.by_size(("rtn", "gptq"), _QUANTIZERS, _QUANTIZERS):
            yield make(method, grid, shares, **short)
    four, three = Grid(4, PerGroup(128)), _THREE_BITS
    joint = [(NofM(2, 4), four), (_HALF, four), (_HALF, three), (Unstructured(0.25), three)]
    for pattern, grid in make.by_size([], [], joint):
        yield make("sparsegpt", SparseGrid(pattern, grid), shares, **short)
    for grid in make.by_size((), (), (_THREE_BITS, Grid(2, PerGroup(128)))):
        yield make("gptq", grid, shares, options=(("act_order", True),), **short)


def _forgetting(make: Maker) -> Iterator[RunConfig]:
    """Chapter 6: knowledge, reading, grammar and robustness, low rank at equal storage included."""
    pairs: list[tuple[str, Target]] = [("sparsegpt", _HALF), ("asvd", _NINE_BITS)]
    if make.settings.preset == "full":
        pairs += [("wanda", _HALF), ("gptq", _THREE_BITS), ("sparsegpt", Unstructured(0.3))]
        pairs += [("sparsegpt", Unstructured(0.2)), ("wanda", Unstructured(0.2))]  # chapter 1: perplexity is kept
        pairs += [(method, _NINE_BITS) for method in ("svd", "fwsvd", "joint_rank")]
        pairs += [("asvd", LowRank(0.8)), ("magnitude", Unstructured(0.3)), ("magnitude", _HALF)]
        pairs += [("rtn", _THREE_BITS), ("awq", _THREE_BITS), ("wanda", Unstructured(0.3)), ("svd", LowRank(0.8))]
        pairs += [("fwsvd", LowRank(0.8)), ("sparsegpt", Unstructured(0.6))]
    tasks = make.by_size(("sciq", "sciq_typos", "agreement"), _FORGETTING_TASKS, _FORGETTING_TASKS)
    yield make.dense(tasks=tasks)
    yield from (make(method, target, _only("c4"), tasks=tasks) for method, target in pairs)


def _costs(make: Maker) -> Iterator[RunConfig]:
    """Chapter 7: what the same compression costs and gives in each schedule."""
    yield make.dense()
    yield make("magnitude", _HALF)
    methods = make.by_size(("sparsegpt",), ("sparsegpt",), ("sparsegpt", "wanda"))
    schedules = make.by_size(("sublayer",), ("sublayer", "parallel"), ("sublayer", "block", "parallel"))
    for method, schedule in product(methods, schedules):
        tasks = {} if schedule == "sublayer" else make.short
        yield make(method, _HALF, _only("c4"), schedule=schedule, **tasks)
    for method in make.by_size((), (), _QUANTIZERS):
        yield make(method, _THREE_BITS, _only("c4"), **make.short)


def _report_card(make: Maker) -> Iterator[RunConfig]:
    """Chapter 8: one method, one model, general and own text."""
    settings: ReportCardSettings = make.settings
    changes = settings.changes(make.preset.texts, make.preset.tasks)
    yield make.dense(**changes)
    for weight in settings.weights:
        shares = _mixed(settings.general, settings.domain, weight)
        yield make(settings.method, parse_target(settings.target), shares, options=settings.options, **changes)


def _loss_aware(make: Maker) -> Iterator[RunConfig]:
    """Chapter 9: masks by the loss, least squares and an anchor against SparseGPT and GPTQ; three draws, two models.

    The other combinations show what each part adds, on one draw.
    """
    settings: LossAwareSettings = make.settings
    shares, short = _mixed(settings.general, settings.domain, 0.5), make.short
    lsq, anchor = (("refine", "lsq"),), (("anchor", settings.anchor),)
    sixty, patterns = Unstructured(0.6), make.by_size((_HALF,), (_HALF,), (_HALF, Unstructured(0.6)))
    whole = [("fisher", pattern, lsq + anchor) for pattern in patterns]
    plain = [("sparsegpt", pattern, ()) for pattern in patterns]
    rounded = [("gptq", _THREE_BITS, ()), ("gptq", _THREE_BITS, anchor)]

    def runs(of: Maker, seed: int, asked) -> Iterator[RunConfig]:
        for method, target, options in asked:
            shared = of is make and seed == 0 and target == _HALF and not options  # with chapter 4
            tasks = _asked(of, method, shares, settings.general) if shared else short
            yield of(method, target, shares, seed=settings.seed + seed, options=options, **tasks)

    makers = [make]
    if settings.preset == "full" and settings.second_model and (settings.accept_terms or settings.compute == "never"):
        makers.append(replace(make, settings=replace(settings, model=settings.second_model)))
    for of in makers:
        yield of.dense(**({} if of is make else short))
        yield from runs(of, 0, (*plain, *whole, *make.by_size((), (), rounded)))
    if settings.preset != "full":
        return
    parts = [("fisher", _HALF, ()), ("fisher", _HALF, lsq), ("sparsegpt", _HALF, lsq), ("sparsegpt", _HALF, anchor)]
    parts += [("sparsegpt", _HALF, lsq + anchor), ("fisher", _HALF, anchor), ("wanda", sixty, ()), ("alps", sixty, ())]
    parts += [("wanda", sixty, (("refine", "swaps"),)), ("wanda", sixty, anchor), ("awq", _THREE_BITS, ())]
    parts += [("awq", _THREE_BITS, anchor), ("dpruner", _HALF, ()), ("dpruner", sixty, ())]
    yield from runs(make, 0, parts)
    for seed in (1, 2):
        yield from runs(make, seed, (*plain, *whole, *rounded))


def _percent(*values: int) -> tuple[Unstructured, ...]:
    return tuple(Unstructured(value / 100) for value in values)


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
        Chapter("perplexity", "01_perplexity_hides_task_loss", PruningSettings, _perplexity),
        Chapter("divergence", "02_divergence_tells_more", Settings, _divergence),
        Chapter("calibration", "03_calibration_data", CalibrationSettings, _calibration),
        Chapter("cross_calibration", "04_cross_calibration", CrossSettings, _cross_calibration),
        Chapter("quantization", "05_quantization", QuantizationSettings, _quantization),
        Chapter("forgetting", "06_what_is_forgotten", Settings, _forgetting),
        Chapter("costs", "07_what_it_costs", Settings, _costs),
        Chapter("report_card", "08_your_model", ReportCardSettings, _report_card),
        Chapter("loss_aware", "09_loss_aware", LossAwareSettings, _loss_aware),
    )
}
