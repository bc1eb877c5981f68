"""The drop-ins in words and tables: a device's README and the terminal."""

from . import report
from .cases import DROP_IN_LATENTS, EVENTS
from .drop_ins_results import cells

INTRO = (
    "Forward + backward of the losses of `fused_elbo.compat` and of the code that each replaces, "
    f"with {EVENTS} pixels and {DROP_IN_LATENTS} latents. `pyro_step` is a whole loss of Pyro, "
    "`TraceMeanField_ELBO` with the MLP decoder of `iwae_step`: Pyro's own "
    "`Normal(...).to_event(1)` is the original, `DiagonalNormal` the drop-in. The original is what "
    "is called eager above; it checks its arguments as it does for its users. The compiler is "
    "given the originals: of `gaussian_nll_loss` it compiles nothing, for torch looks at the "
    "variances there, and Pyro's handlers are not given to it."
)
HEADERS = [
    "loss", "dtype", "batch", "original", "torch.compile", "drop-in", "speed-up",
    "over torch.compile",
]  # fmt: skip


def time(value):
    return report.DASH if value != value else report.seconds(value)  # NaN: nothing compiled


def rows(table):
    return [
        [
            f"`{c.op}`", c.dtype, c.batch, time(c.original_s), time(c.compiled_s),
            report.seconds(c.median_s),
            report.ratio(c.eager) + ("" if c.eager_beyond_noise else " (within noise)"),
            report.ratio(c.compiled),
        ]
        for c in table.itertuples()
    ]  # fmt: skip


def verdict(table):
    apart = table.eager_beyond_noise
    faster, slower = (apart & (table.eager > 1)).sum(), (apart & (table.eager < 1)).sum()
    return (
        f"Of {len(table)} cells the drop-in is faster than its original in {faster} and slower in "
        f"{slower} (the rest within noise); faster, within noise and slower than the better of "
        f"original and `torch.compile`: {report.verdicts(table)}."
    )


def sections(right, speedups, clock):
    """Parts of a device's README; none where nothing of it was measured."""
    table = cells(right, speedups, clock)
    if table.empty:
        return []
    return ["## Drop-ins", INTRO, verdict(table), report.table(HEADERS, rows(table))]


def show(right, speedups, clock, console):
    """Times and speed-ups in the terminal."""
    from .table import bare_table, tint  # which shows this among its own

    for dtype, one in cells(right, speedups, clock).groupby("dtype", sort=False):
        shown = bare_table(f"drop-ins: forward+backward, {dtype}", "loss")
        for name in ("batch", "original", "com-\npile", "drop-in", "speed-\nup", "over\ncompile"):
            shown.add_column(name, justify="right", no_wrap=True)
        for c in one.itertuples():
            shown.add_row(
                c.op,
                str(c.batch),
                *map(time, (c.original_s, c.compiled_s, c.median_s)),
                tint(c.eager, report.ratio(c.eager)),
                tint(c.compiled, report.ratio(c.compiled)),
            )
        console.print(shown)
