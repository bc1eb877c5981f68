"""``python -m bench.plot [DEVICE ...]``: redraw every chart and table from the committed JSON.

Needs no torch. The same JSON gives the same bytes: figures carry no date and no version.
"""

import argparse
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from . import quality_results, report, results
from .cases import ALL, DIRECTIONS, DROP_INS, OPERATIONS
from .report import TIMES

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
# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
LOOKS = {
    "eager": ("#7f7f7f", "s"),
    "distributions": ("#CC79A7", "D"),
    "builtin": ("#E69F00", "v"),
    "compile": ("#0072B2", "^"),
    "compile-max": ("#56B4E9", "<"),
    "compile-reduce-overhead": ("#009E73", ">"),
    "fused_elbo": ("#D55E00", "o"),
    "fused_elbo-chunked": ("#000000", "*"),
}
CLOCK_TEXT = {
    "device": "device time, cold L2",
    "graph": "CUDA-graph replay",
    "host": "wall-clock of the call",
}


def draw_device(device):
    """All charts of a device's folder; returns their paths."""
    from . import drop_ins_plot, quality_plot, samples_plot  # which draw on this module's canvas

    table = results.load(device)
    speedups = results.speedups(table)
    right = results.newest(table)
    clock = results.main_clock(right)
    subject = report.subject(device)
    own = speedups[~speedups.op.isin(DROP_INS)]
    charts = {} if own.empty else {"overview": overview(own, clock, subject)}
    of_samples = samples_plot.charts(device, right, speedups, clock, subject)
    of_drop_ins = drop_ins_plot.charts(right, speedups, clock, subject)
    right = right[right.op.isin(OPERATIONS)]
    speedups = speedups[speedups.op.isin(OPERATIONS)]
    for dtype in sorted(right.dtype.unique()):
        for direction in DIRECTIONS:
            where = f"{slug(direction)}-{dtype}"
            one = right[(right.dtype == dtype) & (right.direction == direction)]
            if one.empty:
                continue
            for kind in sorted(one.clock.unique()):
                mask = (speedups.dtype == dtype) & (speedups.direction == direction)
                cells = speedups[mask & (speedups.clock == kind)]
                if cells.empty:
                    continue
                charts[f"speedup-{where}-{kind}"] = heat_maps(
                    cells, f"{direction}, {dtype}, {CLOCK_TEXT[kind]}", subject
                )
            main = one[one.clock == clock]
            charts[f"bandwidth-{where}"] = bandwidth(main, f"{direction}, {dtype}", subject)
        main = right[(right.dtype == dtype) & (right.clock == clock)]
        for op in present(main):
            charts[f"time-{op}-{dtype}"] = times(main[main.op == op], op, dtype, clock, subject)
        memory = main[main.peak_bytes.notna() & (main.direction == DIRECTIONS[0])]
        if not memory.empty:
            charts[f"memory-{dtype}"] = peak_memory(memory, dtype, subject)
    charts |= of_samples | of_drop_ins
    charts |= quality_plot.charts(device, subject)
    folder = Path(device) / "plots"
    folder.mkdir(exist_ok=True)
    for name in {path.stem for path in folder.glob("*.png")} - set(charts):
        (folder / f"{name}.png").unlink()  # a chart of data that is no longer there
    return [save(figure, folder / f"{name}.png") for name, figure in charts.items()]


def save(figure, path):
    picture = {"optimize": True}
    figure.savefig(
        path, dpi=DPI, facecolor="white", metadata={"Software": None}, pil_kwargs=picture
    )
    return path


def slug(direction):
    return direction.replace("+", "-")


def present(table):
    """The operations of a table, in the suite's order."""
    return [op for op in ALL if (table.op == op).any()]


def providers(table):
    """The providers of a table, in the order of the legend."""
    return [name for name in LOOKS if (table.provider == name).any()]


def canvas(rows, columns, height, title, subject, bottom, **subplots):
    """A figure of README width with a title, its subject below, and axes."""
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.subplots(rows, columns, squeeze=False, **subplots)
    figure.text(0.012, 1 - 0.10 / height, title, size=11, weight="bold", va="top")
    figure.text(0.012, 1 - 0.32 / height, subject, size=8, color="#555555", va="top")
    figure.subplots_adjust(top=1 - 0.78 / height, bottom=bottom / height, left=0.1, right=0.985)
    return figure, axes


def legend(figure, names, height, floor=False):
    """One legend below all axes."""
    handles = [line(name) for name in names]
    if floor:
        text = "floor: necessary bytes at the measured copy's speed"
        handles.append(Line2D([], [], color="black", linestyle="--", label=text))
    columns = len(handles) if len(handles) < 6 else 4 if len(handles) > 6 else 3
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=columns,
        fontsize=8,
        columnspacing=1.4,
        bbox_to_anchor=(0.5, 0.06 / height),
    )


def line(name):
    colour, marker = LOOKS[name]
    return Line2D([], [], color=colour, marker=marker, markersize=5, label=name)


def power(exponent):
    """2 to an exponent as a speed-up: 4, 1/4; with a multiplication sign.

    >>> power(2)[:-1], power(-2)[:-1]
    ('4', '1/4')
    """
    return f"{2**exponent}{TIMES}" if exponent >= 0 else f"1/{2**-exponent}{TIMES}"


def heat_maps(cells, what, subject):
    """Speed-up over the best baseline, batch by latent dimension, a panel an operation."""
    ops = present(cells)
    rows = math.ceil(len(ops) / 2)
    latents = sorted(cells.latent.unique())
    batches = sorted(cells.batch.unique())
    panel = 0.62 + max(0.24 * len(latents), 0.6)
    height = rows * panel + 2.0
    title = f"fused_elbo against the best baseline: {what}"
    figure, axes = canvas(rows, 2, height, title, subject, 1.3)
    figure.subplots_adjust(hspace=0.62 / (panel - 0.45), wspace=0.22)
    reach = max(1.0, min(3.0, np.abs(np.log2(cells.best)).max()))
    norm = TwoSlopeNorm(0.0, -reach, reach)
    for axis, op in zip(axes.flat, ops, strict=False):
        one = cells[cells.op == op].set_index(["latent", "batch"])
        values = np.full((len(latents), len(batches)), np.nan)
        for (latent, batch), cell in one.iterrows():
            i, j = latents.index(latent), batches.index(batch)
            values[i, j] = math.log2(cell.best)
            axis.text(
                j,
                i,
                report.factor(cell.best),
                ha="center",
                va="center",
                size=8,
                color="white" if abs(values[i, j]) > 0.62 * reach else "black",
                weight="bold" if cell.beyond_noise else "normal",
            )
        image = axis.imshow(values, cmap="RdBu", norm=norm, aspect="auto", origin="lower")
        axis.set_title(op, loc="left", weight="bold")
        axis.set_xticks(range(len(batches)), batches)
        axis.set_yticks(range(len(latents)), latents)
        axis.set_ylabel("columns D" if "nll" in op else "latents D")
        axis.grid(False)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(ops) - 2, 0) : len(ops)]:
        axis.set_xlabel("batch size (examples)")
    speedup_bar(figure, image, reach, height)
    return figure


def speedup_bar(figure, image, reach, height, other="the fastest other provider"):
    """The colours of heat maps of speed-ups, and what their bold print means."""
    ticks = [t for t in (-3, -2, -1, 0, 1, 2, 3) if abs(t) <= reach]
    bar_axis = figure.add_axes((0.16, 0.50 / height, 0.68, 0.10 / height))
    bar = figure.colorbar(image, cax=bar_axis, orientation="horizontal", ticks=ticks)
    bar.ax.set_xticklabels([power(t) for t in ticks])
    bar.outline.set_visible(False)
    bar.ax.set_title(
        f"slower   ←   time of {other} / time of fused_elbo   →   faster",
        size=8,
    )
    note = "bold: the two quartile ranges do not overlap; plain: within noise"
    figure.text(0.5, 0.08 / height, note, size=7.5, color="#555555", ha="center")


def times(table, op, dtype, clock, subject):
    """Time of a call against batch size: a column a latent dimension, a row a direction."""
    latents = sorted(table.latent.unique())
    directions = [d for d in DIRECTIONS if (table.direction == d).any()]
    height = 2.25 * len(directions) + 1.75
    title = f"{op}, {dtype}: {CLOCK_TEXT[clock]}"
    grid = {"sharex": True, "sharey": "row"}
    figure, axes = canvas(len(directions), len(latents), height, title, subject, 1.05, **grid)
    figure.subplots_adjust(left=0.135, hspace=0.16, wspace=0.08)
    batches = sorted(table.batch.unique())
    for axis_row, direction in zip(axes, directions, strict=True):
        for axis, latent in zip(axis_row, latents, strict=True):
            panel = table[(table.latent == latent) & (table.direction == direction)]
            for name in providers(panel):
                one = panel[panel.provider == name].sort_values("batch")
                colour, marker = LOOKS[name]
                axis.plot(
                    one.batch, one.median_s, color=colour, marker=marker, markersize=4,
                    linewidth=2.2 if name == "fused_elbo" else 1.2,
                )  # fmt: skip
                axis.fill_between(one.batch, one.q1_s, one.q3_s, color=colour, alpha=0.15)
            floor = panel.drop_duplicates("batch").sort_values("batch")
            axis.plot(floor.batch, floor.floor_s, color="black", linestyle="--", linewidth=1)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(batches, every_other([short(b) for b in batches]))
            axis.minorticks_off()
        axis_row[0].set_ylabel(f"{direction}\ntime of a call")
        axis_row[0].yaxis.set_major_formatter(EngFormatter("s"))
    for axis, latent in zip(axes[0], latents, strict=True):
        axis.set_title(f"D = {latent}", loc="left", weight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("batch (examples)")
    legend(figure, providers(table), height, floor=True)
    return figure


def short(count):
    """64, 4k, 64k.

    >>> short(64), short(4096)
    ('64', '4k')
    """
    return str(count) if count < 1024 or count % 1024 else f"{count // 1024}k"


def every_other(labels):
    """Where there are many, every second label is left out."""
    if len(labels) < 5:
        return labels
    return [label if i % 2 == 0 else "" for i, label in enumerate(labels)]


def bandwidth(table, what, subject):
    """Share of the measured copy's speed against the bytes that the operation needs."""
    ops = present(table)
    rows = math.ceil(len(ops) / 2)
    height = 1.55 * rows + 1.9
    title = f"Necessary bytes a second, as a share of a measured copy: {what}"
    grid = {"sharex": True, "sharey": True}
    figure, axes = canvas(rows, 2, height, title, subject, 1.15, **grid)
    figure.subplots_adjust(hspace=0.30, wspace=0.08)
    for axis, op in zip(axes.flat, ops, strict=False):
        panel = table[table.op == op]
        for name in providers(panel):
            one = panel[panel.provider == name].sort_values("floor_bytes")
            colour, marker = LOOKS[name]
            axis.plot(
                one.floor_bytes / 1e6, one.share_of_copy * 100, color=colour, marker=marker,
                markersize=4, linewidth=2 if name == "fused_elbo" else 1, alpha=0.9,
            )  # fmt: skip
        axis.axhline(100, color="black", linestyle="--", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(op, loc="left", weight="bold")
    for axis in axes.flat[len(ops) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("bytes that must move (MB)")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of copy (%)")
    legend(figure, providers(table), height)
    return figure


def peak_memory(table, dtype, subject):
    """Peak memory of a training step at the largest problem, a row an operation."""
    size = (table.batch * table.latent).max()
    table = table[table.batch * table.latent == size]
    batch, latent = table.batch.iloc[0], table.latent.iloc[0]
    table = table[table.batch == batch]
    ops = present(table)
    height = 0.5 * len(ops) + 1.9
    title = f"Peak memory on top of the inputs: {DIRECTIONS[0]}, {dtype}, {batch} x {latent}"
    figure, axes = canvas(1, 1, height, title, subject, 1.05)
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
        colour, marker = LOOKS[name]
        positions = [ops.index(op) - spread for op in one.op]
        axis.scatter(one.peak_bytes / scale, positions, color=colour, marker=marker, s=34, zorder=3)
    axis.set_yticks(range(len(ops)), ops)
    axis.set_ylim(len(ops) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"peak of live allocations ({unit})")
    legend(figure, names, height)
    return figure


def overview(speedups, clock, subject):
    """Every cell's speed-up as a dot, the geometric mean as a bar, an operation a row."""
    cells = speedups[(speedups.clock == clock) & (speedups.direction == DIRECTIONS[0])]
    ops = present(cells)
    dtypes = sorted(cells.dtype.unique(), reverse=True)
    height = 0.44 * len(ops) + 1.75
    title = f"Speed-up of fused_elbo: {DIRECTIONS[0]}, {CLOCK_TEXT[clock]}"
    figure, axes = canvas(1, 2, height, title, subject, 0.92, sharey=True)
    figure.subplots_adjust(left=0.22, wspace=0.06)
    against = {"best": "over the best baseline", "eager": "over eager PyTorch"}
    colours = {"float32": "#D55E00", "bfloat16": "#0072B2"}
    for axis, (column, label) in zip(axes[0], against.items(), strict=True):
        axis.axvline(1, color="black", linewidth=1)
        for k, dtype in enumerate(dtypes):
            shift = (k - (len(dtypes) - 1) / 2) * 0.34
            for i, op in enumerate(ops):
                values = cells[(cells.op == op) & (cells.dtype == dtype)][column].dropna()
                if values.empty:
                    continue
                axis.scatter(
                    values, [i + shift] * len(values), s=9, color=colours[dtype], alpha=0.45, lw=0
                )
                mean = report.geometric_mean(values)
                axis.plot(
                    [mean] * 2, [i + shift - 0.16, i + shift + 0.16], color=colours[dtype], lw=3
                )
                axis.annotate(
                    report.ratio(mean), (mean, i + shift), xytext=(4, 5), size=7,
                    textcoords="offset points", color=colours[dtype], weight="bold",
                )  # fmt: skip
        low = math.floor(min(math.log2(cells[column].min()), -1))
        high = math.ceil(max(math.log2(cells[column].max()), 1))
        step = -(-(high - low) // 6)
        powers = [p for p in range(low, high + 1) if p % step == 0]
        axis.set_xscale("log", base=2)
        axis.set_xlim(2.0**low / 1.1, 2.0**high * 1.1)
        axis.set_xticks([2.0**p for p in powers], [power(p) for p in powers])
        axis.set_title(label, loc="left", weight="bold")
        axis.set_xlabel("← slower    speed-up    faster →")
    axes[0, 0].set_yticks(range(len(ops)), ops)
    axes[0, 0].set_ylim(len(ops) - 0.5, -0.5)
    handles = [Line2D([], [], color=colours[d], lw=3, label=d) for d in dtypes]
    figure.legend(
        handles=handles, loc="lower center", ncols=2, fontsize=8, bbox_to_anchor=(0.3, 0.02)
    )
    note = "dots: one (batch, latent), or (K, batch, latent), each; bars: geometric mean"
    figure.text(0.98, 0.09 / height, note, size=7.5, color="#555555", ha="right")
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="folders of results/; or all")
    parser.add_argument("--results", default="results", metavar="DIR")
    parser.add_argument("--latest", action="store_true", help="the device with the newest run")
    options = parser.parse_args(arguments)
    for device in chosen(options):
        with mpl.rc_context(STYLE):
            charts = draw_device(device)
        results.write_summary(device)
        quality_results.write_csv(device)
        report.write_device_readme(device, charts)
        print(f"{device}: {len(charts)} charts, summary.csv, README.md")
    report.update_project_readme(options.results)


def chosen(options):
    """The device folders that the command line means; exits where there are none."""
    if options.devices:
        named = [Path(options.results) / name for name in options.devices]
        missing = [d.name for d in named if d not in results.devices(options.results)]
        if missing:
            raise SystemExit(f"no runs of {', '.join(missing)} below {options.results}/")
        return named
    found = results.devices(options.results)
    if not found:
        raise SystemExit(f"no runs below {options.results}/: run `make bench` first")
    return [results.latest(options.results)] if options.latest else found


if __name__ == "__main__":
    main()
