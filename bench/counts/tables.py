"""The likelihoods of counts in tables: a device's README and the terminal. No torch."""

from ..reporting.formats import ratio, seconds, short_name, size
from ..reporting.speedups import shape, verdicts
from ..reporting.tables import Cell, Table, tinted
from . import results

INTRO = (
    "Forward + backward of the likelihoods of B x G counts, of which nine in ten are 0. "
    "`negative_binomial_nll` has a dispersion per gene, `negative_binomial_nll_inflated` a logit "
    "per count besides, `softmax_negative_binomial_nll` the mean library x softmax(logits); of "
    "this one the mean over the batch is differentiated. Eager is scvi-tools' own formula, "
    "`distributions` and `pyro` are their `NegativeBinomial`, `GammaPoisson`, "
    "`ZeroInflatedNegativeBinomial` and `Multinomial`."
)
COLUMNS = [
    "operation", "B x G", "fused_elbo", ("over eager", "over\neager"),
    ("over best baseline", "over\nbest"), ("peak memory", "peak"), ("of eager's", "of\neager's"),
    ("of the least baseline's", "of\nleast"),
]  # fmt: skip


def compared(cells, title=""):
    rows = [
        [
            Cell(f"`{c.op}`", short=short_name(c.op)),
            shape(c), seconds(c.median_s), tinted(c.eager, ratio(c.eager)),
            tinted(c.best, f"{ratio(c.best)} ({c.rival})", ratio(c.best)), size(c.peak_bytes),
            ratio(c.peak_bytes / c.eager_bytes), ratio(c.peak_bytes / c.least_bytes),
        ]
        for c in cells.itertuples()
    ]  # fmt: skip
    return Table(COLUMNS, rows, title)


def verdict(cells):
    return f"Faster, within noise and slower than the best baseline: {verdicts(cells)} cells."


def sections(device):
    """Parts of a device's README; none where nothing of it was measured."""
    cells = results.cells(device)
    return [] if cells.empty else ["## Counts", INTRO, verdict(cells), compared(cells)]


def terminal(device):
    cells = results.cells(device)
    if not cells.empty:
        yield compared(cells, "counts: forward+backward, float32")
