"""The chart of scvi-tools' models. No torch."""

import math

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..reporting import canvas, formats
from . import results

BARS = {("step", 1): "#8c2d04", ("step", 2): "#d94801", ("train", 1): "#fd8d3c",
        ("train", 2): "#fdbe85"}  # fmt: skip
LABELS = {"step": "a step", "train": "model.train()"}
# Colour, line and width; ours is drawn above scvi-tools', which float64 lies below.
CURVES = {
    "float64": ("#000000", "-", 3.2),
    "before": ("#56B4E9", "-", 1.8),
    "after": ("#D55E00", "--", 1.2),
}
CURVE_LABELS = {
    "float64": "scvi-tools in float64",
    "before": "scvi-tools",
    "after": "after the two lines",
}


def charts(device):
    """{name: figure} of a device; empty where nothing of it was measured."""
    record = results.read(device)
    if record is None:
        return {}
    info = record["machine_info"]
    return {"single-cell": figure_of(record, f"{info['device_name']} · torch {info['torch']}")}


def figure_of(record, subject):
    """Speed-ups on top; below them a panel of loss curves per model."""
    names = list(record["models"])
    height = 5.6
    title = f"Models of scvi-tools {record['scvi_tools']}, before and after the two lines"
    figure, axes = canvas.canvas(2, len(names), height, title, subject, 1.3)
    figure.subplots_adjust(hspace=0.42, wspace=0.5, left=0.07)
    for axis in axes[0]:
        axis.remove()
    bars(figure.add_subplot(2, 1, 1), record, names)
    for axis, name in zip(axes[1], names, strict=True):
        curves(axis, record["models"][name]["curves"], name)
    axes[1, 0].set_ylabel("nats per cell")
    handles = [Patch(color=colour, label=label(*key)) for key, colour in BARS.items()]
    handles += [
        Line2D([], [], color=c, linestyle=s, lw=w, label=CURVE_LABELS[key])
        for key, (c, s, w) in CURVES.items()
    ]
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=4,
        fontsize=8,
        bbox_to_anchor=(0.5, 0.05 / height),
    )
    return figure


def label(what, threads):
    return f"{LABELS[what]}, {threads} thread{'s' if threads > 1 else ''}"


def bars(axis, record, names):
    """A bar per model, number of threads and kind, with its quartiles."""
    axis.axhline(1, color="black", linewidth=1)
    thick = 0.8 / len(BARS)
    highest = 1.0
    for name, threads, what, figures in results.rows(record):
        if (what, threads) not in BARS:
            continue
        k = list(BARS).index((what, threads)) - (len(BARS) - 1) / 2
        x, value = names.index(name) + k * thick, figures["speed_up"]
        low, high = figures["quartiles"]
        error = [[value - low], [high - value]]
        axis.bar(x, value, 0.9 * thick, color=BARS[what, threads], zorder=2)
        axis.errorbar(x, value, yerr=error, color="#444444", elinewidth=0.8, zorder=3)
        axis.annotate(
            formats.ratio(value), (x, high), xytext=(0, 2), size=6.5, ha="center",
            textcoords="offset points",
        )  # fmt: skip
        highest = max(highest, high)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 1.12 * math.ceil(2 * highest) / 2)
    axis.set_ylabel("speed-up")
    axis.grid(visible=False, axis="x")


def curves(axis, found, name):
    for key, (colour, style, width) in CURVES.items():
        epochs = range(1, len(found[key]) + 1)
        axis.plot(epochs, found[key], color=colour, linestyle=style, linewidth=width)
    axis.set_title(name, loc="left", weight="bold")
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(4))
    axis.tick_params(labelsize=7)
