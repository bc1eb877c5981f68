"""The charts of K samples. No torch."""

import math

from matplotlib.ticker import EngFormatter, NullLocator, PercentFormatter

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
from ..reporting import canvas, formats
from ..reporting.canvas import CLOCK_TEXT, draw_line
from ..reporting.results import present, providers, waiting
from . import results

TITLES = {"iwae_encoder": "the encoder's side", "iwae_step": "the whole step"}
MOST_COLUMNS = 8  # of the heat maps


def charts(device):
    """{name: figure} of a device; empty where nothing of it was measured."""
    clock, subject = device.clock, device.subject
    table = results.of_samples(device.right)
    table = table[table.clock == clock]
    speedups = results.of_samples(device.speedups)
    found = {}
    for dtype in sorted(table.dtype.unique()):
        one = table[table.dtype == dtype]
        for op in (op for op in present(one) if op != "decoder"):
            found[f"samples-{op}-{dtype}"] = against_samples(
                one[one.op == op], op, dtype, clock, subject
            )
        shares = results.shares(one)
        if not shares.empty:
            found[f"samples-share-{dtype}"] = loss_share(shares, dtype, subject)
        cells = speedups[speedups.dtype == dtype]
        if not cells.empty:
            found[f"samples-speedup-{dtype}"] = heat_maps(cells, dtype, clock, subject)
    largest = results.largest(device)
    if not largest.empty:
        found["samples-largest"] = largest_samples(largest, subject)
    return found


def samples_axis(axis, samples):
    axis.set_xscale("log", base=2)
    axis.set_xticks(samples, samples)
    axis.set_xlim(min(samples) / 1.25, max(samples) * 1.25)
    axis.xaxis.set_minor_locator(NullLocator())


def against_samples(table, op, dtype, clock, subject):
    """Time and peak memory against K: a column a (batch, latent)."""
    shapes = results.chosen_shapes(table)
    samples = sorted(table.samples.unique().tolist())
    height = 2.1 * 2 + 1.85
    what = f"{op}, {TITLES[op]}" if op in TITLES else op
    title = f"{what}, {DIRECTIONS[0]}, {dtype}: {CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(
        2, len(shapes), height, title, subject, 1.1, sharex=True, sharey="row"
    )
    figure.subplots_adjust(left=0.135, hspace=0.14, wspace=0.08)
    for column, shape in zip(axes.T, shapes, strict=True):
        panel = results.at_shape(table, shape)
        time_axis, memory_axis = column
        for name in providers(panel):
            one = panel[panel.provider == name].sort_values("samples")
            canvas.draw_times(time_axis, name, one.samples, one)
            counted = one[one.peak_bytes.notna()]
            draw_line(memory_axis, name, counted.samples, counted.peak_bytes)
        canvas.draw_floor(time_axis, "samples", panel)
        time_axis.set_title(f"B = {shape[0]}, D = {shape[1]}", loc="left", weight="bold")
        memory_axis.set_xlabel("samples K")
        for axis in column:
            samples_axis(axis, samples)
            axis.set_yscale("log")
            axis.minorticks_off()
    axes[0, 0].set_ylabel("time of a call")
    axes[0, 0].yaxis.set_major_formatter(EngFormatter("s"))
    axes[1, 0].set_ylabel("peak memory\non top of the inputs")
    axes[1, 0].yaxis.set_major_formatter(EngFormatter("B"))
    canvas.legend(figure, providers(table), height, floor=True, waiting=waiting(table))
    return figure


def loss_share(table, dtype, subject):
    """1 - decoder / step against K, a panel a (batch, latent)."""
    shapes = results.chosen_shapes(table)
    samples = sorted(table.samples.unique().tolist())
    height = 4.0
    title = f"Share of the loss in a step, {DIRECTIONS[0]}, {dtype}: 1 - decoder alone / step"
    figure, axes = canvas.canvas(1, len(shapes), height, title, subject, 1.1, sharey=True)
    figure.subplots_adjust(wspace=0.08)
    for axis, shape in zip(axes[0], shapes, strict=True):
        panel = results.at_shape(table, shape)
        for name in providers(panel):
            one = panel[panel.provider == name].sort_values("samples")
            draw_line(axis, name, one.samples, one.share)
        axis.axhline(0, color="black", linewidth=1)
        axis.set_title(f"B = {shape[0]}, D = {shape[1]}", loc="left", weight="bold")
        axis.set_xlabel("samples K")
        samples_axis(axis, samples)
    axes[0, 0].set_ylim(min(0.0, table.share.min() - 0.03), 1.0)
    axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0, 0].set_ylabel("sampling, likelihood, bound")
    canvas.legend(figure, providers(table), height)
    return figure


def heat_maps(cells, dtype, clock, subject):
    """Speed-up by K and (batch, latent): a row per operation, over the best and over eager."""
    ops = present(cells)
    panels = [(op, against) for op in ops for against in ("best", "eager")]
    panel_height = 0.75 + 0.27 * cells.samples.nunique()
    height = len(ops) * panel_height + 1.9
    title = f"fused_elbo on K samples, {DIRECTIONS[0]}, {dtype}, {CLOCK_TEXT[clock]}"
    figure, axes = canvas.canvas(len(ops), 2, height, title, subject, 1.25, sharey="row")
    figure.subplots_adjust(hspace=0.75 / (panel_height - 0.6), wspace=0.06)
    reach = canvas.reach_of(cells.best, cells.eager.dropna())
    names = {"best": "over its best baseline", "eager": "over eager PyTorch"}
    noise = {"best": "beyond_noise", "eager": "eager_beyond_noise"}
    for axis, (op, against) in zip(axes.flat, panels, strict=True):
        one = cells[cells.op == op]
        samples = sorted(one.samples.unique().tolist())
        shapes = sorted(set(map(tuple, one[results.SHAPE].to_numpy().tolist())))
        shapes = shapes[:: math.ceil(len(shapes) / MOST_COLUMNS)]
        shown = {
            (c.samples, (c.batch, c.latent)): (getattr(c, against), getattr(c, noise[against]))
            for c in one.itertuples()
            if (c.batch, c.latent) in shapes
        }
        image = canvas.heat_map(axis, shown, samples, shapes, reach)
        axis.set_title(f"{op}: {names[against]}", loc="left", weight="bold")
        axis.set_xticks(range(len(shapes)), [f"{b} x {d}" for b, d in shapes], size=7.5)
    for axis in axes[:, 0]:
        axis.set_ylabel("samples K")
    for axis in axes[-1]:
        axis.set_xlabel("batch x latents")
    canvas.speedup_bar(figure, image, reach, height, "the other provider")
    return figure


def largest_samples(table, subject):
    """Bars of the largest K, a provider each; an arrow where nothing stopped it."""
    order = providers(table)
    height = 0.36 * len(order) + 1.55
    one = table.iloc[0]
    limit = ("a stated budget of " if one.budget else "") + formats.size(one.limit)
    title = f"Largest K of a step within {limit}: B = {one.batch}, D = {one.latent}, float32"
    figure, axes = canvas.canvas(1, 1, height, title, subject, 0.55)
    figure.subplots_adjust(left=0.24, right=0.93)
    axis = axes[0, 0]
    for i, name in enumerate(order):
        row = table[table.provider == name].iloc[0]
        axis.barh(i, row.samples, color=PROVIDERS[name].colour, height=0.62)
        more = " or more" if row.ended == "not reached" else ""
        axis.annotate(
            f"{row.samples:,}{more}", (row.samples, i), xytext=(4, 0), size=8,
            textcoords="offset points", va="center",
        )  # fmt: skip
    axis.set_axisbelow(True)
    axis.set_xscale("log")
    axis.set_xlim(1, 3 * table.samples.max())
    canvas.labelled_rows(axis, order)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("samples K")
    return figure
