"""The sweep of the operations on K samples: shapes from here, the rest from the Grid."""

from itertools import zip_longest
from typing import NamedTuple

from ..harness.cases import DIRECTIONS, EVENTS, GRIDS, Case, coarse_first


class SampleGrid(NamedTuple):
    """Shapes in order of value, the first published."""

    samples: tuple
    batches: tuple
    latents: tuple
    limit: int  # elements of the largest tensor
    decoded: bool = False  # whether that is [K, B, 784] of a decoder and not [K, B, D]

    def fits(self, samples, batch, latent):
        return samples * batch * (max(latent, EVENTS) if self.decoded else latent) <= self.limit


FOUR = (1, 8, 64, 512)
ENCODER_GRIDS = {
    ("cpu", "smoke"): SampleGrid((8,), (64,), (8,), 2**22),
    ("cpu", "default"): SampleGrid((1, 8, 64), (64, 512), (64,), 2**22),
    ("cpu", "full"): SampleGrid(FOUR, (64, 512), (64, 16), 2**22),
    ("cuda", "smoke"): SampleGrid((8,), (1024,), (64,), 2**27),
    ("cuda", "default"): SampleGrid(FOUR, (1024, 64, 16384), (128, 16, 1024), 2**27),
    ("cuda", "full"): SampleGrid(
        FOUR, (1024, 64, 16384, 256, 4096), (128, 16, 1024, 32, 512), 2**27
    ),
}
STEP_GRIDS = {
    ("cpu", "smoke"): SampleGrid((8,), (64,), (8,), 2**22, True),
    ("cpu", "default"): SampleGrid((8, 64), (64,), (64,), 2**22, True),
    # The oracle's float64 copies included, a case takes less than 4 GiB.
    ("cpu", "full"): SampleGrid(FOUR, (64, 256), (64,), 2**25, True),
    ("cuda", "smoke"): SampleGrid((8,), (64,), (64,), 2**28, True),
    # Half a minute of compiling a cell: few shapes.
    ("cuda", "default"): SampleGrid(FOUR, (256, 64), (64,), 2**28, True),
    ("cuda", "full"): SampleGrid(FOUR, (256, 64, 1024, 4096), (64, 16, 256), 2**28, True),
}


def shapes_in_order(grid):
    """All (batch, latent), by how far down the grid's lists they are."""
    pairs = [(i, j) for i in range(len(grid.batches)) for j in range(len(grid.latents))]
    return [(grid.batches[i], grid.latents[j]) for i, j in sorted(pairs, key=lambda p: (sum(p), p))]


def cells(grid, dtypes):
    """[[(K, batch, latent, dtype), ...], ...]: a list per shape, the published one first.

    Its greatest K come first, so that a sweep that is cut short spans all K of one shape.
    """
    return [
        [
            (samples, batch, latent, dtype)
            for dtype in dtypes
            for samples in coarse_first(grid.samples)
            if grid.fits(samples, batch, latent)
        ]
        for batch, latent in shapes_in_order(grid)
    ]


def case_of(op, provider, samples, batch, latent, dtype):
    return Case(op, provider, batch, latent, dtype, DIRECTIONS[0], samples, "samples")


def sweep(entries, device, grid):
    """All cases, the operations shape by shape in turn; those that share their grids together.

    The decoder follows each step: the two are of one machine state, as their difference asks.
    """
    together = {}
    for op, operation in entries.items():
        together.setdefault(id(operation.grids), []).append(op)
    groups, dtypes = list(together.values()), GRIDS[device, grid].dtypes
    swept = [cells(entries[ops[0]].grids[device, grid], dtypes) for ops in groups]
    return [
        case_of(op, provider, *cell)
        for turn in zip_longest(*swept)
        for ops, of_shape in zip(groups, turn, strict=True)
        for cell in of_shape or ()
        for op in ops
        for provider in entries[op].provider_names(device)
    ]
