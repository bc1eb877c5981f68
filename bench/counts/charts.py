"""The chart of the likelihoods of counts. No torch."""

from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
from ..reporting import canvas
from ..reporting.formats import short_name
from ..reporting.results import present, providers
from . import results

# (title, unit, the ticks within a power of ten)
PANELS = {"median_s": ("time of a call", "s", (1, 3)), "peak_bytes": ("peak memory", "B", (1,))}


def charts(device):
    """{name: figure} of a device; empty where nothing of it was measured."""
    table = results.measured(device)
    return {} if table.empty else {"counts": dots(table, device.clock, device.subject)}


def rows_of(table):
    """{(op, batch, genes): its label}, in the order of the chart."""
    found = {}
    for op in present(table):
        shapes = table[table.op == op][["batch", "latent"]].drop_duplicates()
        for batch, genes in sorted(map(tuple, shapes.to_numpy().tolist())):
            found[op, batch, genes] = f"{short_name(op)}, {batch} x {genes}"
    return found


def dots(table, clock, subject):
    """A row per likelihood and shape, a mark per provider: its time, and its peak memory."""
    rows = rows_of(table)
    positions = {key: i for i, key in enumerate(rows)}
    height = 0.3 * len(rows) + 1.95
    title = f"Likelihoods of counts: {DIRECTIONS[0]}, float32, {canvas.CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(1, 2, height, title, subject, 1.05, sharey=True)
    figure.subplots_adjust(left=0.27, wspace=0.06, top=1 - 0.8 / height)
    keys = list(zip(table.op, table.batch, table.latent, strict=True))
    table = table.assign(row=[positions[key] for key in keys])
    for axis, (column, (label, unit, ticks)) in zip(axes[0], PANELS.items(), strict=True):
        for i in range(0, len(rows), 2):
            axis.axhspan(i - 0.5, i + 0.5, color="#f4f4f4", lw=0)
        for name in providers(table):
            one = table[(table.provider == name) & table[column].notna()]
            colour, marker, *_ = PROVIDERS[name]
            axis.scatter(one[column], one.row, color=colour, marker=marker, s=34, zorder=3)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=ticks))
        axis.xaxis.set_major_formatter(EngFormatter(unit))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(label, loc="left", weight="bold")
        axis.grid(visible=False, axis="y")
    canvas.labelled_rows(axes[0, 0], list(rows.values()))
    canvas.legend(figure, providers(table), height)
    return figure
