"""The parts of all charts: figures of one look, axes, legends, heat maps of speed-ups."""

import math

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..harness.providers import PROVIDERS
from .formats import TIMES, WAITS, factor

WIDTH = 8.0  # inches; 800 pixels in a README, drawn with half as many again
DPI = 150
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "fused_elbo",
}
DTYPE_COLOURS = {
    "float32": "#D55E00",
    "bfloat16": "#0072B2",
    "float16": "#009E73",
    "float64": "#CC79A7",
}
CLOCK_TEXT = {
    "device": "device time, cold L2",
    "graph": "CUDA-graph replay",
    "host": "wall-clock of the call",
}
BOLD = "bold: the two quartile ranges do not overlap; plain: within noise"


def canvas(rows, columns, height, title, subject, bottom, **subplots):
    """A figure of README width with a title, its subject below, and axes."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    figure.text(0.012, 1 - 0.10 / height, title, size=11, weight="bold", va="top")
    figure.text(0.012, 1 - 0.32 / height, subject, size=8, color="#555555", va="top")
    figure.subplots_adjust(top=1 - 0.78 / height, bottom=bottom / height, left=0.1, right=0.985)
    return figure, axes


def save(figure, path):
    """No date and no version: the same JSON gives the same bytes."""
    options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    figure.savefig(path, dpi=DPI, facecolor="white", **options)
    return path


def note(figure, height, y, text, x=0.5, ha="center"):
    figure.text(x, y / height, text, size=7.5, color="#555555", ha=ha)


def legend(figure, names, height, floor=False, waiting=()):
    """One legend of providers below all axes; those that are ``waiting`` have a mark."""
    handles = [
        Line2D(
            [], [], color=p.colour, marker=p.marker, markersize=5,
            label=name + (WAITS if name in waiting else ""),
        )
        for name, p in PROVIDERS.items()
        if name in names
    ]  # fmt: skip
    if waiting:
        text = f"{WAITS} waits for the device: host time is in it"
        handles.append(Line2D([], [], linestyle="", label=text))
    if floor:
        text = "floor: necessary bytes at the measured copy's speed"
        handles.append(Line2D([], [], color="black", linestyle="--", label=text))
    columns = len(handles) if len(handles) < 6 else 4 if len(handles) > 6 else 3
    columns = min(columns, 3) if waiting else columns
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, fontsize=8, columnspacing=1.4,
        bbox_to_anchor=(0.5, 0.06 / height),
    )  # fmt: skip


def draw_line(axis, name, x, y, widths=(1.2, 2.2), **options):
    """A provider's line, ours the wider one."""
    colour, marker, *_ = PROVIDERS[name]
    width = widths[name == "fused_elbo"]
    axis.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=width, **options)


def draw_times(axis, name, x, rows):
    """Medians as a line, quartiles as a band."""
    draw_line(axis, name, x, rows.median_s)
    axis.fill_between(x, rows.q1_s, rows.q3_s, color=PROVIDERS[name].colour, alpha=0.15)


def draw_floor(axis, column, panel):
    floor = panel.drop_duplicates(column).sort_values(column)
    axis.plot(floor[column], floor.floor_s, color="black", linestyle="--", linewidth=1)


def power(exponent):
    """2 to an exponent as a speed-up: 4, 1/4; with a multiplication sign.

    >>> power(2)[:-1], power(-2)[:-1]
    ('4', '1/4')
    """
    return f"{2**exponent}{TIMES}" if exponent >= 0 else f"1/{2**-exponent}{TIMES}"


def speedup_axis(axis, powers, ends, label):
    """An axis of speed-ups from one power of 2 to another, with some six ticks."""
    low, high = powers
    step = -(-(high - low) // 6)
    ticks = [p for p in range(low, high + 1) if p % step == 0]
    axis.set_xscale("log", base=2)
    axis.set_xlim(*ends)
    axis.set_xticks([2.0**p for p in ticks], [power(p) for p in ticks])
    axis.set_title(label, loc="left", weight="bold")
    axis.set_xlabel("← slower    speed-up    faster →")


def labelled_rows(axis, names):
    """A row per name, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def reach_of(*ratios):
    """The power of 2 at which the colours of a heat map end: 1 to 3."""
    return max(1.0, min(3.0, np.abs(np.log2(np.concatenate(ratios))).max()))


def heat_map(axis, cells, rows, columns, reach):
    """``cells`` {(row, column): (speed-up, whether beyond noise)}, blue where above 1."""
    values = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (speedup, beyond_noise) in cells.items():
        i, j = rows.index(row), columns.index(column)
        values[i, j] = math.log2(speedup)
        axis.text(
            j, i, factor(speedup), ha="center", va="center", size=8,
            color="white" if abs(values[i, j]) > 0.62 * reach else "black",
            weight="bold" if beyond_noise else "normal",
        )  # fmt: skip
    norm = TwoSlopeNorm(0.0, -reach, reach)
    image = axis.imshow(values, cmap="RdBu", norm=norm, aspect="auto", origin="lower")
    axis.set_yticks(range(len(rows)), rows)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


def speedup_bar(figure, image, reach, height, other="the fastest other provider"):
    """The colours of heat maps of speed-ups, and what their bold print means."""
    ticks = [t for t in (-3, -2, -1, 0, 1, 2, 3) if abs(t) <= reach]
    bar_axis = figure.add_axes((0.16, 0.50 / height, 0.68, 0.10 / height))
    bar = figure.colorbar(image, cax=bar_axis, orientation="horizontal", ticks=ticks)
    bar.ax.set_xticklabels([power(t) for t in ticks])
    bar.outline.set_visible(False)
    text = f"slower   ←   time of {other} / time of fused_elbo   →   faster"
    bar.ax.set_title(text, size=8)
    note(figure, height, 0.08, BOLD)
