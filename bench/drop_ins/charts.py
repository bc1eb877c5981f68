"""The chart of the drop-ins. No torch."""

import math

import matplotlib as mpl
import numpy as np
from matplotlib.patches import Patch

from ..harness.cases import DIRECTIONS
from ..reporting import canvas, formats
from ..reporting.results import present
from .tables import cells

AGAINST = {"eager": "over the original", "best": "over the best baseline"}
BEYOND_NOISE = {"eager": "eager_beyond_noise", "best": "beyond_noise"}


def charts(device):
    """{name: figure}, one a dtype; empty where nothing of it was measured."""
    return {
        f"drop-ins-{dtype}": bars(one, dtype, device.clock, device.subject)
        for dtype, one in cells(device).groupby("dtype")
    }


def bars(table, dtype, clock, subject):
    """Speed-up of each drop-in: a bar a batch, from 1 to the left or right."""
    ops, batches = present(table), sorted(table.batch.unique().tolist())
    shades = mpl.colormaps["Oranges"](np.linspace(0.35, 0.85, len(batches)))
    thick = 0.8 / len(batches)
    height = max(0.2 * len(batches), 0.45) * len(ops) + 1.75
    title = f"Speed-up of the drop-ins: {DIRECTIONS[0]}, {dtype}, {canvas.CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(1, 2, height, title, subject, 0.92, sharey=True)
    figure.subplots_adjust(left=max(0.255, 0.0095 * max(map(len, ops))), wspace=0.06)
    for axis, (column, label) in zip(axes[0], AGAINST.items(), strict=True):
        known = table[table[column].notna()]
        for cell in known.itertuples():
            value = getattr(cell, column)
            k = batches.index(cell.batch)
            y = ops.index(cell.op) + (k - (len(batches) - 1) / 2) * thick
            axis.barh(y, value - 1, left=1, height=0.9 * thick, color=shades[k], zorder=2)
            faster = value >= 1
            axis.annotate(
                formats.ratio(value), (value, y), xytext=(3 if faster else -3, 0), size=6.5,
                textcoords="offset points", va="center", ha="left" if faster else "right",
                weight="bold" if getattr(cell, BEYOND_NOISE[column]) else "normal",
            )  # fmt: skip
        powers = np.log2([0.5, 2, *known[column]])
        low, high = math.floor(powers.min()), math.ceil(powers.max())
        room = 0.18 * (high - low)  # for the figures beside the bars
        canvas.speedup_axis(axis, (low, high), (2.0 ** (low - room), 2.0 ** (high + room)), label)
        axis.axvline(1, color="black", linewidth=1, zorder=3)
        axis.grid(visible=False, axis="y")
    canvas.labelled_rows(axes[0, 0], ops)
    handles = [Patch(color=s, label=f"batch {b}") for s, b in zip(shades, batches, strict=True)]
    figure.legend(
        handles=handles, loc="lower center", ncols=len(batches), fontsize=8,
        bbox_to_anchor=(0.3, 0.02),
    )  # fmt: skip
    canvas.note(figure, height, 0.09, canvas.BOLD, x=0.98, ha="right")
    return figure
