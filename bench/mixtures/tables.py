"""The losses that compare all pairs in tables: a device's README and the terminal. No torch."""

from ..harness.cases import DIRECTIONS
from ..reporting.formats import ratio, seconds, size
from ..reporting.speedups import verdicts
from ..reporting.tables import Table, tinted
from . import results

INTRO = (
    "Losses that compare each of B samples with each of K components of D latents. Everyone writes "
    "them with a tensor of all B x K x D. `mixture_log_prob`: the density of a mixture, as of a "
    "VampPrior. `kl_aggregate`: `kl_decomposition` of a batch with the aggregate posterior of a "
    "data set of K. `kl_stratified`: the same of a batch alone (K = B), as a beta-TCVAE trains. "
    "`compile-chunked` is a loop over parts of the batch, each by the compiled textbook."
)
COLUMNS = [
    "operation", ("direction", None), "B x K x D", "fused_elbo", ("per (b, k, d)", None),
    ("over eager", "over\neager"), ("over best baseline", "over\nbest"), ("peak memory", "peak"),
    ("of eager's", "of\neager's"), ("of the least baseline's", None),
]  # fmt: skip


def compared(cells, title=""):
    rows = [
        [
            f"`{c.op}`", c.direction, f"{c.batch} x {c.samples} x {c.latent}", seconds(c.median_s),
            seconds(c.median_s / c.pairs), tinted(c.eager, ratio(c.eager)),
            tinted(c.best, f"{ratio(c.best)} ({c.rival})", ratio(c.best)), size(c.peak_bytes),
            ratio(c.peak_bytes / c.eager_bytes), ratio(c.peak_bytes / c.least_bytes),
        ]
        for c in cells.itertuples()
    ]  # fmt: skip
    return Table(COLUMNS, rows, title)


def verdict(cells):
    """Wins and losses; a sentence on memory where it was counted beside eager's."""
    text = f"Faster, within noise and slower than the best baseline: {verdicts(cells)} cells."
    return text + memory(cells.peak_bytes / cells.eager_bytes)


def memory(shares):
    shares = shares.dropna()
    if shares.empty:
        return ""
    few, most = ratio(shares.min()), ratio(shares.max())
    return f" Peak memory is {few} to {most} eager's, over {len(shares)} cells."


def sections(device):
    """Parts of a device's README; none where nothing of it was measured."""
    cells = results.cells(device)
    return [] if cells.empty else ["## Mixtures", INTRO, verdict(cells), compared(cells)]


def terminal(device):
    for direction in DIRECTIONS:
        cells = results.cells(device)
        cells = cells[cells.direction == direction]
        if not cells.empty:
            yield compared(cells, f"all pairs: {direction}")
