"""The sweep of the drop-ins: batches and dtypes of the Grid, at one latent dimension."""

from ..harness.cases import DIRECTIONS, Case, coarse_first

LATENTS = 32


def case_of(op, provider, batch, dtype):
    return Case(op, provider, batch, LATENTS, dtype, DIRECTIONS[0], suite="drop_ins")


def sweep(entries, device, grid):
    """All cases, a loss after the other; of a brief grid the batch in the middle alone."""
    batches = coarse_first(grid.batches)
    return [
        case_of(op, provider, batch, dtype)
        for op, operation in entries.items()
        if not (grid.brief and operation.full_only)
        for batch in (batches[-1:] if grid.brief else batches)
        if batch <= operation.most
        for dtype in grid.dtypes
        if dtype in operation.dtypes
        for provider in operation.provider_names(device)
    ]
