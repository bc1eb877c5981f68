"""The sweep of the operations: every shape of the grid, in both directions."""

from ..harness.cases import DIRECTIONS, Case, coarse_first
from ..harness.providers import PROVIDERS


def shapes(grid):
    """All (batch, latent) of a grid, coarse first: the largest problem is the very first."""
    batches, latents = coarse_first(grid.batches), coarse_first(grid.latents)
    pairs = [(b, d) for b in batches for d in latents]
    return sorted(pairs, key=lambda p: max(batches.index(p[0]), latents.index(p[1])))


def sweep(entries, device, shapes, dtypes, directions=DIRECTIONS):
    """All cases; the providers of a cell follow each other, to meet the same machine state."""
    return [
        Case(op, provider, batch, latent, dtype, direction, suite="operations")
        for batch, latent in shapes
        for op, operation in entries.items()
        if not operation.corners or (batch, latent) in shapes[:4]
        for dtype in dtypes
        for direction in directions
        for provider in operation.provider_names(device)
    ]


def of_grid(entries, device, grid):
    """The sweep of a grid, and after it one long row and a few cells of other dtypes.

    A single row and each dtype is compiled anew. So these are training alone, and without
    ``fused_elbo-compiled``; of other dtypes the largest shape and one in the middle.
    """
    found, directions = shapes(grid), DIRECTIONS
    middle = found[-1]
    if grid.brief:
        found, directions = [*found[:4], middle], DIRECTIONS[:1]
        entries = {op: operation for op, operation in entries.items() if not operation.full_only}
    few = {op: o for op, o in entries.items() if o.few_dtypes or not (grid.brief or o.corners)}
    others = sweep(few, device, (found[0], middle), grid.few, DIRECTIONS[:1])
    if grid.row is not None:
        long = {op: operation for op, operation in entries.items() if operation.long_row}
        others = sweep(long, device, [(1, grid.row)], grid.dtypes, DIRECTIONS[:1]) + others
    others = [case for case in others if PROVIDERS[case.provider].compiles == "eager"]
    return sweep(entries, device, found, grid.dtypes, directions) + others
