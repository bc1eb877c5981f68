"""The charts of the losses that compare all pairs. No torch."""

from matplotlib.ticker import EngFormatter, NullLocator

from ..harness.cases import DIRECTIONS
from ..reporting import canvas
from ..reporting.canvas import CLOCK_TEXT
from ..reporting.results import present, providers
from . import results

AXES = {"batch": "batch B", "samples": "components K", "latent": "latents D"}
LETTERS = {"batch": "B", "samples": "K", "latent": "D"}


def charts(device):
    """{name: figure} of a device; empty where nothing of it was measured."""
    subject, found = device.subject, {}
    for dtype, table in results.training(device).groupby("dtype"):
        what = f"{DIRECTIONS[0]}, {dtype}"
        clock = CLOCK_TEXT[device.clock]
        ratios = results.against_ours(table)
        if not ratios.empty:
            title = f"Speed-up of fused_elbo over each baseline: {what}, {clock}"
            found[f"mixtures-speedup-{dtype}"] = speedups(ratios, title, subject)
        title = f"Time per sample, component and latent: {what}, {clock}"
        found[f"mixtures-time-{dtype}"] = times(table, title, subject)
        counted = table[table.peak_bytes.notna()]
        if not counted.empty:
            title = f"Peak memory on top of the inputs: {what}"
            found[f"mixtures-memory-{dtype}"] = memory(counted, title, subject)
    return found


def along_each(table, value, title, subject):
    """A row an operation, a column a dimension that grows, a line a provider: (figure, axes)."""
    ops = present(table)
    height = 2.05 * len(ops) + 1.75
    figure, axes = canvas.canvas(len(ops), 3, height, title, subject, 1.0, sharey="row")
    figure.subplots_adjust(left=0.135, hspace=0.62, wspace=0.08)
    for row, op in zip(axes, ops, strict=True):
        for axis, along in zip(row, AXES, strict=True):
            draw_line(axis, table[table.op == op], along, value)
        row[0].annotate(
            op, (0, 1), xytext=(0, 20), xycoords="axes fraction", textcoords="offset points",
            weight="bold",
        )  # fmt: skip
    canvas.legend(figure, providers(table), height)
    return figure, axes


def draw_line(axis, table, along, value):
    """A provider's line along a dimension; above it, what the others are."""
    cells = results.line(table, along)
    axis.set_visible(not cells.empty)
    if cells.empty:
        return
    for name in providers(cells):
        one = cells[cells.provider == name].sort_values(along)
        canvas.draw_line(axis, name, one[along], one[value])
    ticks = sorted(cells[along].unique().tolist())
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, ticks)
    axis.xaxis.set_minor_locator(NullLocator())
    same = [f"{LETTERS[k]} = {cells[k].iloc[0]}" for k in AXES if cells[k].nunique() == 1]
    axis.set_title(", ".join(same), loc="left", color="#555555")
    square = results.squares(cells) and along == "batch"
    axis.set_xlabel("batch B = components K" if square else AXES[along])


def speedups(table, title, subject):
    figure, axes = along_each(table, "speedup", title, subject)
    low, high = (f(table.speedup) for f in (min, max))
    for row in axes:
        for axis in row:
            axis.set_yscale("log", base=2)
            axis.axhline(1, color="black", linewidth=1)
            powers = range(-8, 14)
            axis.set_yticks([2.0**p for p in powers], [canvas.power(p) for p in powers])
            axis.set_ylim(min(low, 1) / 1.3, max(high, 1) * 1.3)
        row[0].set_ylabel("speed-up")
    return figure


def memory(table, title, subject):
    figure, axes = along_each(table, "peak_bytes", title, subject)
    for row in axes:
        row[0].set_yscale("log")
        row[0].yaxis.set_major_formatter(EngFormatter("B"))
        row[0].set_ylabel("peak memory")
    return figure


def times(table, title, subject):
    """Every cell, the small to the left: what a pair's latent costs."""
    ops = present(table)
    height = 4.2
    figure, axes = canvas.canvas(1, len(ops), height, title, subject, 1.2, sharey=True)
    figure.subplots_adjust(left=0.115, wspace=0.08)
    table = table.assign(pairs=table[results.SHAPE].prod(axis=1)).sort_values("pairs")
    for axis, op in zip(axes[0], ops, strict=True):
        panel = table[table.op == op]
        for name in providers(panel):
            one = panel[panel.provider == name]
            canvas.draw_line(axis, name, one.pairs, one.per_pair)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(op, loc="left", weight="bold")
        axis.set_xlabel("B x K x D")
    axes[0, 0].yaxis.set_major_formatter(EngFormatter("s"))
    axes[0, 0].set_ylabel("time / (B K D)")
    canvas.legend(figure, providers(table), height)
    return figure
