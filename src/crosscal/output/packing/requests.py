"""What can be stored as codes at all, decided from names and widths before any work is done."""

from collections.abc import Sequence

from crosscal.errors import InputError
from crosscal.types import Grid, PerGroup, SparseGrid, Target

STORAGES = ("dense", "compressed-tensors")
MOST_BITS = 8  # of a code in the library's packed format


def grid_of(method: str, target: Target) -> Grid:
    """The grid that the weights of a compressed model lie on.

    Raises `InputError` for a target without a grid, and for AWQ, whose weights are rounded with their columns scaled
    and divided by the scales afterwards, so that no group of the stored weights has evenly spaced levels.

    >>> from crosscal.types import NofM
    >>> str(grid_of("sparsegpt", SparseGrid(NofM(2, 4), Grid(bits=4))))
    '4 bits per row'
    """
    grid = target.grid if isinstance(target, SparseGrid) else target
    if not isinstance(grid, Grid):
        raise InputError(f"{target} does not round weights to a grid; use storage='dense', or a target such as Grid(4)")
    if method == "awq":
        raise InputError(
            "awq scales columns before it rounds, so its weights lie on no grid; use storage='dense', or gptq"
        )
    return grid


def check_storage(method: str, target: Target, widths: Sequence[int]) -> Grid:
    """The grid to store layers of these widths (numbers of inputs) with.

    Raises `InputError` where `grid_of` does, for more than 8 bits, for groups that do not divide a width, and when
    the package compressed-tensors is missing.
    """
    grid = grid_of(method, target)
    check_grid(grid, widths)
    return grid


def check_grid(grid: Grid, widths: Sequence[int]) -> None:
    """Raises `InputError` for a grid that the format cannot hold for these widths, or a missing package."""
    if grid.bits > MOST_BITS:
        raise InputError(
            f"compressed-tensors packs at most {MOST_BITS} bits, not {grid.bits}; use storage='dense' or fewer bits"
        )
    for width in sorted(set(widths)):
        if isinstance(grid.group, PerGroup) and width % grid.group.size:
            raise InputError(
                f"groups of {grid.group.size} do not divide a layer's {width} inputs, which compressed-tensors cannot "
                "store; use storage='dense', rows, or a group that divides"
            )
    library()


def library():
    """The package compressed-tensors; raises `InputError` that says how to install it."""
    try:
        import compressed_tensors
    except ImportError:
        raise InputError(
            'storage="compressed-tensors" needs a package; run pip install "crosscal[quantized]"'
        ) from None
    return compressed_tensors
