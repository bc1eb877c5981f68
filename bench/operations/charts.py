"""The charts of the operations. No torch."""

import math

from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
from ..reporting import canvas
from ..reporting.canvas import CLOCK_TEXT
from ..reporting.results import dtypes, present, providers, waiting


def charts(device):
    """{name: figure}; empty where nothing was measured."""
    clock, subject = device.clock, device.subject
    found = {}
    # One long row is no point of the grid; it is in the tables.
    right = device.right[(device.right.suite == "operations") & (device.right.batch > 1)]
    speedups = device.all_speedups
    speedups = speedups[(speedups.suite == "operations") & (speedups.batch > 1)]
    for dtype in dtypes(right):
        for direction in DIRECTIONS:
            what, where = f"{direction}, {dtype}", f"{direction.replace('+', '-')}-{dtype}"
            one = right[(right.dtype == dtype) & (right.direction == direction)]
            cells = speedups[(speedups.dtype == dtype) & (speedups.direction == direction)]
            for kind, by_clock in cells.groupby("clock"):
                found[f"speedup-{where}-{kind}"] = heat_maps(
                    by_clock, f"{what}, {CLOCK_TEXT[kind]}", subject
                )
            if not one.empty:
                found[f"bandwidth-{where}"] = bandwidth(one[one.clock == clock], what, subject)
        main = right[(right.dtype == dtype) & (right.clock == clock)]
        for op in present(main):
            found[f"time-{op}-{dtype}"] = times(main[main.op == op], op, dtype, clock, subject)
        memory = main[main.peak_bytes.notna() & (main.direction == DIRECTIONS[0])]
        if not memory.empty:
            found[f"memory-{dtype}"] = peak_memory(memory, dtype, subject)
    return found


def heat_maps(cells, what, subject):
    """Speed-up over the best baseline, batch by latent dimension, a panel per operation."""
    ops = present(cells)
    rows = math.ceil(len(ops) / 2)
    latents = sorted(cells.latent.unique())
    batches = sorted(cells.batch.unique())
    panel = 0.62 + max(0.24 * len(latents), 0.6)
    height = rows * panel + 2.0
    title = f"fused_elbo against the best baseline: {what}"
    figure, axes = canvas.canvas(rows, 2, height, title, subject, 1.3)
    figure.subplots_adjust(hspace=0.62 / (panel - 0.45), wspace=0.22)
    reach = canvas.reach_of(cells.best)
    for axis, op in zip(axes.flat, ops, strict=False):
        one = {
            (c.latent, c.batch): (c.best, c.beyond_noise)
            for c in cells[cells.op == op].itertuples()
        }
        image = canvas.heat_map(axis, one, latents, batches, reach)
        axis.set_title(op, loc="left", weight="bold")
        axis.set_xticks(range(len(batches)), batches)
        axis.set_ylabel("columns D" if "nll" in op else "latents D")
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(ops) - 2, 0) : len(ops)]:
        axis.set_xlabel("batch size (examples)")
    canvas.speedup_bar(figure, image, reach, height)
    return figure


def times(table, op, dtype, clock, subject):
    """Time of a call against batch size: a column per latent dimension, a row per direction."""
    latents = sorted(table.latent.unique())
    directions = [d for d in DIRECTIONS if (table.direction == d).any()]
    height = 2.25 * len(directions) + 1.75
    title = f"{op}, {dtype}: {CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(
        len(directions), len(latents), height, title, subject, 1.05, sharex=True, sharey="row"
    )
    figure.subplots_adjust(left=0.135, hspace=0.16, wspace=0.08)
    batches = sorted(table.batch.unique())
    step = 1 if len(batches) < 5 else 2  # where there are many, every second has no label
    labels = [short(b) if i % step == 0 else "" for i, b in enumerate(batches)]
    for axis_row, direction in zip(axes, directions, strict=True):
        for axis, latent in zip(axis_row, latents, strict=True):
            panel = table[(table.latent == latent) & (table.direction == direction)]
            for name in providers(panel):
                one = panel[panel.provider == name].sort_values("batch")
                canvas.draw_times(axis, name, one.batch, one)
            canvas.draw_floor(axis, "batch", panel)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(batches, labels)
            axis.minorticks_off()
        axis_row[0].set_ylabel(f"{direction}\ntime of a call")
        axis_row[0].yaxis.set_major_formatter(EngFormatter("s"))
    for axis, latent in zip(axes[0], latents, strict=True):
        axis.set_title(f"D = {latent}", loc="left", weight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("batch (examples)")
    canvas.legend(figure, providers(table), height, floor=True, waiting=waiting(table))
    return figure


def short(count):
    """64, 4k, 64k.

    >>> short(64), short(4096)
    ('64', '4k')
    """
    return str(count) if count < 1024 or count % 1024 else f"{count // 1024}k"


def bandwidth(table, what, subject):
    """Share of the measured copy's speed against the bytes that the operation needs."""
    ops = present(table)
    rows = math.ceil(len(ops) / 2)
    height = 1.55 * rows + 1.9
    title = f"Necessary bytes per second, as a share of a measured copy: {what}"
    figure, axes = canvas.canvas(rows, 2, height, title, subject, 1.15, sharex=True, sharey=True)
    figure.subplots_adjust(hspace=0.30, wspace=0.08)
    for axis, op in zip(axes.flat, ops, strict=False):
        panel = table[table.op == op]
        for name in providers(panel):
            one = panel[panel.provider == name].sort_values("floor_bytes")
            x, y = one.floor_bytes / 1e6, one.share_of_copy * 100
            canvas.draw_line(axis, name, x, y, widths=(1, 2), alpha=0.9)
        axis.axhline(100, color="black", linestyle="--", linewidth=1)
        axis.set_xscale("log")
        # Over less than two powers of ten matplotlib would label every tick in between.
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(op, loc="left", weight="bold")
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("bytes that must move (MB)")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of copy (%)")
    canvas.legend(figure, providers(table), height, waiting=waiting(table))
    return figure


def peak_memory(table, dtype, subject):
    """Peak memory of a training step at the largest problem, a row per operation."""
    size = (table.batch * table.latent).max()
    table = table[table.batch * table.latent == size]
    batch, latent = table.batch.iloc[0], table.latent.iloc[0]
    table = table[table.batch == batch]
    ops = present(table)
    height = 0.5 * len(ops) + 1.9
    title = f"Peak memory on top of the inputs: {DIRECTIONS[0]}, {dtype}, {batch} x {latent}"
    figure, axes = canvas.canvas(1, 1, height, title, subject, 1.05)
    axis = axes[0, 0]
    figure.subplots_adjust(left=0.22, top=1 - 0.6 / height)
    for i in range(0, len(ops), 2):
        axis.axhspan(i - 0.5, i + 0.5, color="#f4f4f4", lw=0)
    axis.grid(visible=False, axis="y")
    names = providers(table)
    scale, unit = (2**30, "GiB") if table.peak_bytes.max() > 2**32 else (2**20, "MiB")
    for name in names:
        one = table[table.provider == name]
        spread = (names.index(name) - (len(names) - 1) / 2) * 0.8 / len(names)
        colour, marker, *_ = PROVIDERS[name]
        positions = [ops.index(op) - spread for op in one.op]
        axis.scatter(one.peak_bytes / scale, positions, color=colour, marker=marker, s=34, zorder=3)
    canvas.labelled_rows(axis, ops)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"peak of live allocations ({unit})")
    canvas.legend(figure, names, height)
    return figure
