"""The data of the charts and tables of all pairs. No torch."""

from ..harness.cases import DIRECTIONS
from ..harness.providers import OURS

SHAPE = ["batch", "samples", "latent"]  # B, K, D
# The axis of a chart, and the columns that are then the same in all its cells.
ALONG = {"batch": ["samples", "latent"], "samples": ["batch", "latent"], "latent": SHAPE[:2]}


def of_mixtures(table):
    return table[table.suite == "mixtures"]


def training(device):
    """Forward + backward by the clock of the charts, with ``per_pair``: seconds per (b, k, d)."""
    table = of_mixtures(device.right)
    table = table[(table.clock == device.clock) & (table.direction == DIRECTIONS[0])]
    return table.assign(per_pair=table.median_s / table[SHAPE].prod(axis=1))


def against_ours(table):
    """The rows of all others, with ``speedup``: how many times fused_elbo's time they take."""
    cell = ["run", "op", *SHAPE, "dtype"]
    ours = table[table.provider == "fused_elbo"].set_index(cell).median_s.rename("ours_s")
    both = table[~table.provider.isin(OURS)].join(ours, on=cell, how="inner")
    return both.assign(speedup=both.median_s / both.ours_s)


def squares(table):
    """Whether every batch is compared with itself."""
    return (table.batch == table.samples).all()


def line(table, along):
    """The cells of an operation of which one dimension differs: where it has the most values.

    A batch that is compared with itself has as many components; these have no line then.
    """
    fixed = ALONG[along]
    if squares(table):
        if along == "samples":
            return table.iloc[:0]
        fixed = ["latent"] if along == "batch" else ["batch"]
    values = table.groupby(fixed)[along].nunique().reset_index()
    best = values.sort_values([along, *fixed]).iloc[-1]
    return table[(table[fixed] == best[fixed]).all(axis=1)]


def cells(device):
    """The speed-ups, in the order of the tables."""
    table = of_mixtures(device.speedups)
    table = table.assign(pairs=table[SHAPE].prod(axis=1))
    return table.sort_values(["direction", "order", "pairs"], ascending=[False, True, True])
