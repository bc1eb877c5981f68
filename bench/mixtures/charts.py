"""The charts of the losses that compare all pairs. No torch."""

import math

from matplotlib.ticker import EngFormatter, NullLocator

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
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
            title = f"Speed-up of fused_elbo by baseline: {what}, {clock}"
            found[f"mixtures-speedup-{dtype}"] = speedups(ratios, title, subject)
        title = f"Time per (b, k, d): {what}, {clock}"
        found[f"mixtures-time-{dtype}"] = times(table, title, subject)
        counted = table[table.peak_bytes.notna()]
        if not counted.empty:
            title = f"Peak memory on top of the inputs: {what}"
            found[f"mixtures-memory-{dtype}"] = memory(counted, title, subject)
    return found


def along_each(table, value, label, title, subject):
    """A row an operation, a column a dimension that grows, a line a provider: (figure, rows)."""
    ops = present(table)
    height = 1.95 * len(ops) + 1.55
    figure, axes = canvas.canvas(len(ops), 3, height, title, subject, 1.0, sharey="row")
    figure.subplots_adjust(left=0.135, hspace=0.6, wspace=0.08)
    for row, op in zip(axes, ops, strict=True):
        for axis, along in zip(row, AXES, strict=True):
            draw_line(axis, table[table.op == op], along, value)
        row[0].set_ylabel(f"{op}\n{label}")
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
    figure, axes = along_each(table, "speedup", "speed-up", title, subject)
    powers = range(-8, 14)
    for (first, *others), op in zip(axes, present(table), strict=True):
        values = table[table.op == op].speedup
        first.set_yscale("log", base=2)
        first.set_yticks([2.0**p for p in powers], [canvas.power(p) for p in powers])
        first.set_ylim(min(values.min(), 1) / 1.3, max(values.max(), 1) * 1.3)
        for axis in (first, *others):
            axis.axhline(1, color="black", linewidth=1)
    return figure


def memory(table, title, subject):
    figure, axes = along_each(table, "peak_bytes", "peak memory", title, subject)
    for first, *_ in axes:
        first.set_yscale("log")
        first.yaxis.set_major_formatter(EngFormatter("B"))
    return figure


def times(table, title, subject):
    """Every cell, the small to the left: what one latent of a pair costs."""
    ops = present(table)
    height = 3.9
    figure, axes = canvas.canvas(1, len(ops), height, title, subject, 1.0, sharey=True)
    figure.subplots_adjust(left=0.115, wspace=0.08)
    table = table.assign(pairs=table[results.SHAPE].prod(axis=1))
    for axis, op in zip(axes[0], ops, strict=True):
        panel = table[table.op == op]
        for name in providers(panel):
            one = panel[panel.provider == name]
            colour, marker, *_ = PROVIDERS[name]
            axis.scatter(one.pairs, one.per_pair, color=colour, marker=marker, s=26, lw=0, zorder=3)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(op, loc="left", weight="bold")
        axis.set_xlabel("B x K x D")
    axes[0, 0].yaxis.set_major_formatter(EngFormatter("s"))
    axes[0, 0].set_ylim(bottom=10 ** math.floor(math.log10(table.per_pair.min())))
    axes[0, 0].set_ylabel("time / (B K D)")
    canvas.legend(figure, providers(table), height)
    return figure
