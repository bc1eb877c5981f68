"""All speed-ups over baselines at a glance: a chart, a table, a page. No torch."""

import itertools
import math

from matplotlib.lines import Line2D

from ..harness.cases import DIRECTIONS
from . import canvas, formats, speedups
from .canvas import CLOCK_TEXT
from .results import dtypes, present

PROJECT = (
    "Speed-up over eager PyTorch / over the best of all baselines in each cell, geometric "
    "mean over the grid, float32 unless a row says otherwise:"
)


def project(devices, link, suites):
    """For README.md: all devices side by side."""
    table = speedups.of_devices(devices, suites, link)
    return [PROJECT, table] if table else []


def measured(devices, link):
    """A sentence for README.md: whether a GPU was measured."""
    found = ", ".join(link(device) for device in devices if not device.on_cpu)
    return [f"Triton's kernels were measured on {found}." if found else "No GPU has been measured."]


def chart(devices, link):
    """For README.md: the overview of the first device, which is a GPU where one was measured."""
    text = "speed-up over the best baseline and over eager PyTorch, per operation"
    return ["!" + link(device, "plots/overview.png", text) for device in devices[:1]]


def in_words(device, suites):
    """A sentence on what came out; None where nothing was compared."""
    cells = device.speedups[device.speedups.suite.isin(suites)]
    cells = cells[cells.direction == DIRECTIONS[0]]
    names = dtypes(cells)
    if not names:
        return None
    cells = cells[cells.dtype == names[0]]
    eager, best = (formats.ratio(formats.geometric_mean(cells[c])) for c in ("eager", "best"))
    faster, even, slower = speedups.counted(cells)
    return (
        f"fused_elbo is {eager} as fast as eager PyTorch, and {best} as fast as the best baseline "
        f"of each cell: faster in {faster} cells, within noise in {even}, slower in {slower} "
        f"({DIRECTIONS[0]}, {names[0]}, {CLOCK_TEXT[device.clock]}; geometric means)."
    )


def terminal(device, suites):
    """A table per dtype and direction."""
    for dtype in dtypes(device.speedups):
        for direction in DIRECTIONS:
            of = device.speedups
            of = of[(of.dtype == dtype) & (of.direction == direction)]
            title = f"speed-up of fused_elbo: {direction}, {dtype}"
            table = speedups.speedup_table(of, suites, title)
            if table.rows:
                yield table


def charts(device, suites):
    """{name: figure} of the suites of these names; empty where nothing of them was measured."""
    cells = device.speedups[device.speedups.suite.isin(suites)]
    if cells.empty:
        return {}
    return {"overview": dots(cells, present(cells, suites), device.clock, device.subject)}


def dots(cells, ops, clock, subject):
    """Every cell's speed-up as a dot, their geometric mean as a bar, a line per op and dtype."""
    cells = cells[cells.direction == DIRECTIONS[0]]
    names = dtypes(cells)
    places, ends = heights(cells, ops)
    height = 0.31 * ends[-1] + 1.95
    title = f"Speed-up of fused_elbo: {DIRECTIONS[0]}, {CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(1, 2, height, title, subject, 1.05, sharey=True)
    figure.subplots_adjust(left=0.27, wspace=0.06)
    against = {"best": "over the best baseline", "eager": "over eager PyTorch"}
    for axis, (column, label) in zip(axes[0], against.items(), strict=True):
        axis.axvline(1, color="black", linewidth=1)
        for start, end in zip(ends[:-1:2], ends[1::2], strict=False):
            axis.axhspan(start, end, color="#f4f4f4", lw=0)
        for (op, dtype), y in places.items():
            values = cells[(cells.op == op) & (cells.dtype == dtype)][column].dropna()
            if not values.empty:
                draw_cells(axis, values, y, canvas.DTYPE_COLOURS[dtype])
        low = math.floor(min(math.log2(cells[column].min()), -1))
        high = math.ceil(max(math.log2(cells[column].max()), 1))
        canvas.speedup_axis(axis, (low, high), (2.0**low / 1.1, 2.0**high * 1.1), label)
        axis.grid(visible=False, axis="y")
    middles = [(start + end) / 2 for start, end in itertools.pairwise(ends)]
    axes[0, 0].set_yticks(middles, ops)
    axes[0, 0].set_ylim(ends[-1], 0)
    handles = [Line2D([], [], color=canvas.DTYPE_COLOURS[d], lw=3, label=d) for d in names]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(names), fontsize=8,
        bbox_to_anchor=(0.5, 0.25 / height),
    )  # fmt: skip
    text = "a dot per (batch, latent) or (K, batch, latent); bars: geometric mean"
    canvas.note(figure, height, 0.09, text, x=0.98, ha="right")
    return figure


def heights(cells, ops):
    """({(op, dtype): its height} of those measured, where the bands of the ops begin and end)."""
    places, ends = {}, [0.0]
    for op in ops:
        measured = dtypes(cells[cells.op == op])
        for i, dtype in enumerate(measured):
            places[op, dtype] = ends[-1] + 0.7 + i
        ends.append(ends[-1] + max(1, len(measured)) + 0.4)
    return places, ends


def draw_cells(axis, values, y, colour):
    """Dots of all cells at the height y, and their mean as a labelled bar."""
    axis.scatter(values, [y] * len(values), s=9, color=colour, alpha=0.45, lw=0)
    mean = formats.geometric_mean(values)
    axis.plot([mean] * 2, [y - 0.16, y + 0.16], color=colour, lw=3)
    axis.annotate(
        formats.ratio(mean), (mean, y), xytext=(4, 5), size=7, textcoords="offset points",
        color=colour, weight="bold",
    )  # fmt: skip
