"""Round to nearest, AWQ, GPTQ and joint pruning with quantization in float64, weight by weight.

Where a weight lies halfway between two levels to within `NEAR` of a step, the last bit of an earlier sum decides
which one it takes, and with error feedback everything after it. Each function therefore takes `ties`, a solution
whose choice is followed there and only there; without it, exact halves go to the even code.
"""

import math

import torch

from crosscal.types import FloatGrid, NofM, PerGroup

NEAR = 0.01
RATIOS = [step * 0.05 for step in range(20)]


def rtn(weight, grid, ties=None):
    """Nearest level of each group, groups fitted on the weight itself."""
    weight = weight.double()
    rounded, largest = torch.zeros_like(weight), weight.abs().max().item()
    for left, right in _groups(weight.shape[1], grid):
        levels = _fit_rows(weight[:, left:right], grid, largest)
        for j in range(left, right):
            rounded[:, j] = _round_column(weight[:, j], levels, ties, j)
    return rounded


def awq(weights, gram, grid, ties=None):
    """The new weights, the chosen ratio and every ratio's error (Lin et al. 2024, eq. 4 and 5, on root mean squares).

    `ties` is a list with one solution for each weight; it settles halves of the chosen ratio only.
    """
    weights, gram = [weight.double() for weight in weights], gram.double()
    errors = []
    for ratio in RATIOS:
        rounded = scale_and_round(weights, gram, grid, ratio)
        errors.append(sum(output_error(w, r, gram) for w, r in zip(weights, rounded, strict=True)))
    best = min(range(len(RATIOS)), key=lambda i: (errors[i], i))
    return scale_and_round(weights, gram, grid, RATIOS[best], ties), RATIOS[best], errors


def scale_and_round(weights, gram, grid, ratio, ties=None):
    """What AWQ makes of its weights at one ratio."""
    sizes = [math.sqrt(gram[j, j].item()) for j in range(len(gram))]
    largest = max(sizes)
    powers = {j: max(size, 1e-4 * largest) ** ratio for j, size in enumerate(sizes) if size > 0}
    middle = math.sqrt(max(powers.values()) * min(powers.values())) if powers else 1.0
    scale = torch.tensor([powers[j] / middle if j in powers else 1.0 for j in range(len(sizes))], dtype=torch.double)
    ties = [None] * len(weights) if ties is None else [tie.double() * scale for tie in ties]
    return [rtn(w.double() * scale, grid, tie) / scale for w, tie in zip(weights, ties, strict=True)]


def output_error(weight, changed, gram):
    """sum over rows of dw G dw^T."""
    change = weight.double() - changed.double()
    return sum((row @ gram.double() @ row).item() for row in change)


def gptq(weight, gram, grid, act_order=True, damp=0.01, block=128, ties=None):
    """Algorithm 1 of Frantar et al. 2023 without blocks, so that `block` changes nothing: errors flow at once."""
    weight, hessian = _prepare(weight, gram, damp, drop_dead=False)
    d_in, largest = weight.shape[1], weight.abs().max().item()
    order = list(range(d_in))
    if act_order:
        order.sort(key=lambda j: -gram[j, j].double().item())  # a stable sort: equal ones stay as they were
    upper = _factor(hessian[order][:, order])
    static = act_order or not isinstance(grid.group, PerGroup)
    levels = {}
    if static:
        for left, right in _groups(d_in, grid):
            levels |= dict.fromkeys(range(left, right), _fit_rows(weight[:, left:right], grid, largest))
    starts = dict(_groups(d_in, grid))
    for step, j in enumerate(order):
        if not static and j in starts:
            levels |= dict.fromkeys(range(j, starts[j]), _fit_rows(weight[:, j : starts[j]], grid, largest))
        _fix(weight, order, step, _round_column(weight[:, j], levels[j], ties, j), upper)
    return weight


def joint(weight, gram, pattern, grid, damp=0.01, block=128, ties=None):
    """SparseGPT (Frantar & Alistarh 2023, algorithm 1) whose surviving weights take a level of their group."""
    weight, hessian = _prepare(weight, gram, damp, drop_dead=True)
    d_in, largest = weight.shape[1], weight.abs().max().item()
    order, upper = list(range(d_in)), _factor(hessian)
    score = lambda left, right: weight[:, left:right] ** 2 / upper.diagonal()[left:right] ** 2  # noqa: E731
    starts, blocks = dict(_groups(d_in, grid)), dict(_mask_blocks(d_in, grid, block))
    for j in range(d_in):
        if j in starts and (j == 0 or isinstance(grid.group, PerGroup)):
            levels = _fit_rows(weight[:, j : starts[j]], grid, largest)
        if isinstance(pattern, NofM):
            if j % pattern.m == 0:
                mask_start, drop = j, _smallest_of_rows(score(j, j + pattern.m), pattern.m - pattern.n)
        elif j in blocks:
            mask_start, drop = j, _up_to_position(score(j, blocks[j]), pattern.sparsity)
        value = _round_column(weight[:, j], levels, ties, j)
        value[drop[:, j - mask_start]] = 0.0
        _fix(weight, order, j, value, upper)
    return weight


def _groups(d_in, grid):
    """(first column, end) of each group."""
    size = grid.group.size if isinstance(grid.group, PerGroup) else d_in
    return [(left, min(left + size, d_in)) for left in range(0, d_in, size)]


def _mask_blocks(d_in, grid, block):
    """(first column, end) of each block with a threshold of its own: blocks never cut a group at an odd place."""
    if not isinstance(grid.group, PerGroup):
        spans, step = [(0, d_in)], block
    elif grid.group.size >= block:
        spans, step = _groups(d_in, grid), block
    else:
        spans, step = [(0, d_in)], block // grid.group.size * grid.group.size
    return [(left, min(left + step, end)) for start, end in spans for left in range(start, end, step)]


def _fit(values, grid):
    """(scale, zero, top) of one group: min-max including 0."""
    low, high, top = min(0.0, *values), max(0.0, *values), 2**grid.bits - 1
    if grid.symmetric:
        high = max(high, -low)
        low = -high
    scale = (high - low) / top or 1.0
    return scale, 2 ** (grid.bits - 1) if grid.symmetric else round(-low / scale), top


def _fit_rows(weight, grid, largest):
    """The levels of each row of a group; `largest` is the greatest size of the whole matrix, at the start."""
    if isinstance(grid, FloatGrid):
        return [(_float_scale(max(abs(v) for v in [0.0, *row.tolist()]), grid, largest), None, None) for row in weight]
    return [_fit([0.0, *row.tolist()], grid) for row in weight]


def _float_scale(size, grid, largest):
    """MXFP4: the power of two two below that of the size. NVFP4: size / 6 in E4M3 times a power of two."""
    if str(grid) == "mxfp4":
        return 2.0 ** (math.floor(math.log2(size)) - 2) if size else 1.0
    tensor = 2.0 ** math.ceil(math.log2(largest / (6 * 448))) if largest else 1.0
    step = 2.0 ** (max(math.floor(math.log2(max(size / 6 / tensor, 2**-9))), -6) - 3)  # 3 bits of mantissa
    return min(round(size / 6 / tensor / step) * step, 448) * tensor or tensor


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def _round_float(value, scale, tie):
    """The nearest of the eight sizes by trying all; of two as near the one with the even mantissa bit."""
    sizes = sorted(range(8), key=lambda i: (abs(E2M1[i] - abs(value) / scale), i % 2))
    first, second = (math.copysign(E2M1[i] * scale, value) for i in sizes[:2])
    near = abs(abs(first - value) - abs(second - value)) < 2 * NEAR * scale
    return min((first, second), key=lambda q: abs(q - tie)) if tie is not None and near else first


def _round(value, scale, zero, top, tie):
    if zero is None:
        return _round_float(value, scale, tie)
    level = lambda code: (min(max(code + zero, 0), top) - zero) * scale  # noqa: E731
    steps = value / scale
    if tie is not None and abs(steps - math.floor(steps) - 0.5) < NEAR:
        return min(level(math.floor(steps)), level(math.ceil(steps)), key=lambda q: abs(q - tie))
    return level(round(steps))


def _round_column(column, levels, ties, j):
    ties = [None] * len(column) if ties is None else ties[:, j].tolist()
    rounded = [_round(value, *level, tie) for value, level, tie in zip(column.tolist(), levels, ties, strict=True)]
    return torch.tensor(rounded, dtype=torch.double)


def _prepare(weight, gram, damp, drop_dead):
    """A copy of the weight, without its dead inputs where they are dropped, and the damped Hessian."""
    weight, hessian = weight.double().clone(), gram.double().clone()
    extra = damp * hessian.diagonal().mean()
    for j in range(len(hessian)):
        if gram[j, j] == 0:
            weight[:, j] *= not drop_dead
            hessian[j, j] = 1.0
        else:
            hessian[j, j] += extra
    return weight, hessian


def _factor(hessian):
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


def _fix(weight, order, step, value, upper):
    """Fix column order[step]; its error reaches every later column of the order."""
    j, later = order[step], order[step + 1 :]
    error = (weight[:, j] - value) / upper[step, step]
    weight[:, j] = value
    weight[:, later] -= error[:, None] * upper[step, step + 1 :]


def _smallest_of_rows(scores, count):
    drop = torch.zeros_like(scores, dtype=torch.bool)
    for i, row in enumerate(scores.tolist()):
        for j in sorted(range(len(row)), key=lambda j: (row[j], j))[:count]:
            drop[i, j] = True
    return drop


def _up_to_position(scores, sparsity):
    """Everything up to the score at position int(size * sparsity); nothing at 0, everything at 1."""
    ordered = sorted(scores.flatten().tolist())
    position = int(len(ordered) * sparsity)
    if sparsity == 0 or position >= len(ordered):
        return torch.full_like(scores, sparsity != 0, dtype=torch.bool)
    return scores <= ordered[position]
