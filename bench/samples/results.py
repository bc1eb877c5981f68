"""The data of the charts and tables of K samples. No torch."""

import pandas as pd

from ..harness.providers import COMPILED
from ..reporting import results

SHAPE = ["batch", "latent"]
MOST_SHAPES = 4  # side by side in a chart
LARGEST = ["run", "provider", "batch", "latent", "samples", "bytes", "limit", "budget", "ended",
           "tried", "median_s"]  # fmt: skip


def of_samples(table):
    return table[table.suite == "samples"]


def chosen_shapes(table):
    """The (batch, latent) of a table that have the most K, at most MOST_SHAPES, small first."""
    count = table.groupby(SHAPE).samples.nunique().reset_index()
    best = count.sort_values(["samples", *SHAPE], ascending=[False, True, True])
    return sorted(map(tuple, best[SHAPE].head(MOST_SHAPES).to_numpy().tolist()))


def at_shape(table, shape):
    return table[(table.batch == shape[0]) & (table.latent == shape[1])]


def shares(table):
    """The share of the loss in a step: 1 - decoder / step, both of one run and clock.

    Sampling, likelihood and bound, that is. The decoder is the eager one for those who run it
    so, and the compiled one for the compiler, in which it may be merged with what is around it.
    """
    step, decoder = table[table.op == "iwae_step"], table[table.op == "decoder"]
    # Chunks run it twice: what is left would not be the loss.
    step = step[step.provider != "fused_elbo-chunked"]
    step = step.assign(by=step.provider.where(step.provider.isin(COMPILED), "eager"))
    decoder = decoder.rename(columns={"provider": "by", "median_s": "decoder_s"})
    keys = ["run", "clock", "by", *(k for k in results.CELL if k != "op")]
    both = step.merge(decoder[[*keys, "decoder_s"]], on=keys)
    return both.assign(share=1 - both.decoder_s / both.median_s)


def against_eager(device):
    """The speed-ups where there is an eager one, in the order of the tables."""
    cells = of_samples(device.speedups).dropna(subset="eager")
    return cells.sort_values(["order", *SHAPE, "samples"])


def largest(device):
    """The largest K of each provider: the rows of the newest run of those with the most."""
    rows = [
        {k: benchmark["extra_info"].get(k) for k in LARGEST}
        | {"run": name, "median_s": benchmark["stats"]["median"]}
        for name, benchmark in device.of_suite("largest")
    ]
    table = pd.DataFrame(rows, columns=LARGEST)
    return results.newest_run(table).reset_index(drop=True)
