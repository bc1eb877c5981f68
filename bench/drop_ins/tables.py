"""The drop-ins in tables: a device's README, the project's pages and the terminal. No torch."""

from ..harness.cases import EVENTS, GENES
from ..harness.providers import COMPILED
from ..reporting import speedups
from ..reporting.formats import ratio, seconds
from ..reporting.results import CELL
from ..reporting.tables import Table, tinted
from .cases import LATENTS

INTRO = (
    "Forward + backward of the losses of `fused_elbo.compat` and of the code that each replaces, "
    f"with {EVENTS} pixels and {LATENTS} latents. Those of counts have {GENES:,} genes, and nine "
    "in ten counts are 0. `pyro_step` is a whole loss of Pyro, `TraceMeanField_ELBO` with the MLP "
    "decoder of `iwae_step`: Pyro's own `Normal(...).to_event(1)` is the original, "
    "`DiagonalNormal` the drop-in. The original is what is called eager above; it checks its "
    "arguments as it does for its users. The compiler is "
    "given the originals. It compiles nothing of `gaussian_nll_loss`, because torch looks at the "
    "variances there, and it is not given Pyro's handlers."
)
PROJECT = (
    "Speed-up over the code that is replaced / over the better of that and the same compiled, "
    "geometric mean over the grid, float32 unless a row says otherwise:"
)
COLUMNS = [
    "loss", ("dtype", None), "batch", "original", ("torch.compile", None), "drop-in",
    ("speed-up", "over\noriginal"), ("over torch.compile", "over\ncompile"),
]  # fmt: skip


def cells(device):
    """A row a loss, dtype and batch: times of the original, the compiled and the drop-in.

    Beside what speed-ups have: ``original_s``, ``compiled_s`` (of the compiler's fastest mode; NaN
    where it has none) and ``compiled``, the speed-up over that.
    """
    right, ours = device.right, device.speedups[device.speedups.suite == "drop_ins"]
    compiled = right[right.provider.isin(COMPILED)].groupby([*CELL, "clock"]).median_s.min()
    table = ours.merge(compiled.rename("compiled_s"), on=[*CELL, "clock"], how="left")
    return table.assign(
        original_s=table.eager * table.median_s,
        compiled=table.compiled_s / table.median_s,
    ).sort_values(["dtype", "order", "batch"], ascending=[False, True, True])


def compared(table, title=""):
    """Times and speed-ups."""
    rows = []
    for c in table.itertuples():
        speedup, noise = ratio(c.eager), "" if c.eager_beyond_noise else " (within noise)"
        times = map(seconds, (c.original_s, c.compiled_s, c.median_s))
        ratios = tinted(c.eager, speedup + noise, speedup), tinted(c.compiled, ratio(c.compiled))
        rows.append([f"`{c.op}`", c.dtype, c.batch, *times, *ratios])
    return Table(COLUMNS, rows, title)


def verdict(table):
    faster, _, slower = speedups.counted(table, "eager", "eager_beyond_noise")
    return (
        f"The drop-in is faster than its original in {faster} and slower in {slower} of "
        f"{len(table)} cells (the rest within noise). Against the better of original and "
        f"`torch.compile` it is faster / within noise / slower in {speedups.verdicts(table)}."
    )


def sections(device):
    """Parts of a device's README; none where nothing of it was measured."""
    table = cells(device)
    return [] if table.empty else ["## Drop-ins", INTRO, verdict(table), compared(table)]


def project(devices, link):
    """For docs/drop-ins.md: all devices side by side."""
    table = speedups.of_devices(devices, ["drop_ins"], link)
    return [PROJECT, table] if table else []


def terminal(device):
    for dtype, one in cells(device).groupby("dtype", sort=False):
        yield compared(one, f"drop-ins: forward+backward, {dtype}")
