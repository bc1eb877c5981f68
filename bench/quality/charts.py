"""The charts of the quality suite. No torch."""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from ..reporting.canvas import canvas, note
from . import results
from .cases import SLOPE_DISTANCE
from .entries import ENTRIES

TITLES = {"model": "model: W", "encoder": "encoder: mu, logvar"}
Q_TEXT = f"q {SLOPE_DISTANCE:+g}"


def charts(device):
    """{name: figure} of a device; empty where nothing was measured."""
    table, subject = results.newest(device), device.subject
    if table.empty:
        return {}
    slopes = results.slopes(table)
    return {
        "quality-bound": bounds(table, subject),
        "quality-snr": signals(table, slopes, subject),
        "quality-frontier": frontier(table, subject),
        "quality-time-to-snr": time_to_snr(table, subject),
        "quality-losses": losses(table, subject),
    }


def legend(figure, names, height, extra=(), columns=None):
    looks = {name: entry.look.split() for name, entry in ENTRIES.items() if name in names}
    handles = [
        Line2D([], [], color=c, marker=m, linestyle=s, markersize=5, label=name)
        for name, (c, m, s) in looks.items()
    ]
    handles += extra
    figure.legend(
        handles=handles, loc="lower center", ncols=columns or min(len(handles), 5), fontsize=8,
        columnspacing=1.4, bbox_to_anchor=(0.5, 0.05 / height),
    )  # fmt: skip


def grid(table, titles, what, subject, inches, around, ylabel, bottom=1.15, xlabel="samples K",
         share=("all", "row"), **adjust):  # fmt: skip
    """(figure, height, [(D, its row of axes), ...]): a row per dimension, a column per title."""
    latents = sorted(table.latent.unique())
    height = inches * len(latents) + around
    sharex, sharey = share
    figure, axes = canvas(
        len(latents), len(titles), height, what, subject, bottom, sharex=sharex, sharey=sharey
    )
    figure.subplots_adjust(**adjust)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, loc="left", weight="bold")
    for axis, latent in zip(axes[:, 0], latents, strict=True):
        axis.set_ylabel(f"D = {latent}\n{ylabel}")
    for axis in axes[-1]:
        axis.set_xlabel(xlabel)
    return figure, height, list(zip(latents, axes, strict=True))


def present(table, chart, layered=False):
    """The estimators of a table that a chart shows, as they are drawn."""
    names = [name for name, entry in ENTRIES.items() if chart in entry.charts.split()]
    names.sort(key=lambda name: ENTRIES[name].layer if layered else 0)
    return [name for name in names if (table.estimator == name).any()]


def against_samples(axis, table):
    samples = sorted(int(k) for k in table.samples.unique())
    axis.set_xscale("log", base=2)
    # Powers of 4 are labelled; those between them have a tick.
    axis.set_xticks(samples, [k if k.bit_length() % 2 else "" for k in samples])
    axis.xaxis.set_minor_locator(NullLocator())


def errors(axis, x, y, error, name, **options):
    colour, marker, style = ENTRIES[name].look.split()
    axis.errorbar(
        x, y, yerr=error, color=colour, marker=marker, linestyle=style, markersize=4,
        linewidth=1.2, elinewidth=0.8, capsize=0, **options,
    )  # fmt: skip


def bounds(table, subject):
    """The bounds against K, the exact log p(x) as a line; a row per dimension."""
    distances = sorted(table.distance.unique())
    if len(distances) > 3:
        distances = [distances[0], *(d for d in (0.0, SLOPE_DISTANCE) if d in distances)]
    figure, height, rows = grid(
        table, [*map(side, distances)], "What the bounds say of log p(x), against K", subject,
        2.1, 1.75, "nats an example", wspace=0.08, hspace=0.16,
    )  # fmt: skip
    for latent, row in rows:
        for axis, distance in zip(row, distances, strict=True):
            cell = table[(table.latent == latent) & (table.distance == distance)]
            against_samples(axis, table)
            if cell.empty:
                continue
            for name in present(cell, "bound"):
                one = cell[cell.estimator == name]
                errors(axis, one.samples, one.log_evidence - one.gap, 2 * one.gap_error, name)
            axis.axhline(cell.log_evidence.iloc[0], color="black", linewidth=1.2)
            axis.axhline(cell.exact_elbo.iloc[0], color="black", linewidth=0.9, linestyle=":")
            kl = cell.kl_posterior.iloc[0]
            axis.text(
                0.97, 0.04, f"KL(q || posterior) = {kl:.2g} nats", transform=axis.transAxes,
                ha="right", size=7, color="#555555",
            )  # fmt: skip
        # A failing upper bound must not hide the rest.
        part = table[(table.latent == latent) & table.distance.isin(distances)]
        low, high = part.exact_elbo.min(), part.log_evidence.max()
        row[0].set_ylim(low - 0.2 * (high - low), high + 0.5 * (high - low))
    extra = [
        Line2D([], [], color="black", linewidth=1.2, label="exact log p(x)"),
        Line2D([], [], color="black", linewidth=0.9, linestyle=":", label="exact ELBO"),
    ]
    legend(figure, present(table, "bound"), height, extra)
    note(figure, height, 0.5, "bars: two standard errors; cubo is an upper bound only as K grows")
    return figure


def side(distance):
    """A signed distance in words."""
    if distance == 0:
        return "q 0: the best diagonal q"
    return f"q {distance:+g}: {'wider' if distance > 0 else 'narrower'} than the best"


def signals(table, slopes, subject):
    """SNR against K on log-log axes, the slopes of theory dashed through the fits."""
    table = table[table.distance == SLOPE_DISTANCE]
    figure, height, rows = grid(
        table, TITLES.values(), f"Signal-to-noise ratio of one example's gradient, {Q_TEXT}",
        subject, 2.6, 1.75, "SNR, median over parameters", wspace=0.08, hspace=0.14,
    )  # fmt: skip
    for latent, row in rows:
        lowest = np.inf
        for axis, part in zip(row, TITLES, strict=True):
            cell = table[table.latent == latent]
            for name in present(cell, "snr", layered=True):
                one = cell[(cell.estimator == name)]
                one = one[one[f"{part}_snr"] > 2 * one[f"{part}_snr_error"]]
                value, error = one[f"{part}_snr"], one[f"{part}_snr_error"]
                lowest = min(lowest, value.min())
                errors(axis, one.samples, value, error, name)
            fitted = slopes[(slopes.latent == latent) & (slopes.part == part)]
            against_samples(axis, table)
            axis.set_yscale("log")
            lines = []
            for row_of in fitted.itertuples():
                reference(axis, row_of)
                lines.append(
                    f"{row_of.estimator}: slope {signed(row_of.slope)} "
                    f"[{signed(row_of.low)}, {signed(row_of.high)}], theory {signed(row_of.theory)}"
                )
            axis.text(
                0.02, 0.98, "\n".join(lines), transform=axis.transAxes, va="top", size=7,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip
        top = row[0].get_ylim()[1]
        row[0].set_ylim(lowest / 2, top * 4)
    extra = [Line2D([], [], color="black", linestyle="--", linewidth=1.5, label="slope of theory")]
    legend(figure, present(table, "snr"), height, extra, columns=4)
    note(
        figure, height, 0.5,
        "bars: standard errors; brackets: 95 % intervals; SNRs within two errors of 0 left out",
    )  # fmt: skip
    return figure


def signed(value):
    return f"{value:+.2f}".replace("-", "\u2212")


def reference(axis, fitted):
    """The slope of theory through the middle of what was fitted."""
    x = np.array([fitted.from_k, fitted.to_k], float)
    middle = np.sqrt(x.prod())
    y = np.exp(fitted.level) * middle**fitted.slope * (x / middle) ** fitted.theory
    axis.plot(x, y, color="black", linestyle="--", linewidth=1.5, zorder=5)


def frontier(table, subject):
    """Gradient variance against time of a call; a line per estimator, along K."""
    table = table[table.distance == SLOPE_DISTANCE]
    figure, height, rows = grid(
        table, TITLES.values(), f"Variance of one example's gradient against time, {Q_TEXT}",
        subject, 2.6, 1.95, "", 1.35, "time of a call, forward + backward, 64 examples",
        ("row", "none"), wspace=0.2, hspace=0.3,
    )  # fmt: skip
    for latent, row in rows:
        for axis, part in zip(row, TITLES, strict=True):
            cell = table[table.latent == latent]
            for name in present(cell, "frontier"):
                one = cell[cell.estimator == name].sort_values("samples")
                errors(axis, one.median_s, one[f"{part}_variance"], None, name, alpha=0.85)
            best = pareto(cell[cell.estimator.isin(present(cell, "frontier"))], f"{part}_variance")
            axis.step(best[0], best[1], where="post", color="black", linewidth=3, alpha=0.25)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(EngFormatter("s"))
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_title(f"D = {latent}, {TITLES[part]}", loc="left", weight="bold")
            unit = "nats² / W²" if part == "model" else "nats² a parameter"
            axis.set_ylabel(f"variance ({unit})")
    extra = [Line2D([], [], color="black", linewidth=3, alpha=0.25, label="frontier")]
    legend(figure, present(table, "frontier"), height, extra, columns=5)
    note(
        figure, height, 0.75,
        "mean over parameters; along a line K grows to the right; bounds differ: a tighter one "
        "has a smaller gradient too",
    )  # fmt: skip
    return figure


def pareto(cell, column):
    """(times, values) of the points that no other beats in both."""
    points = cell.sort_values(["median_s", column])
    best = points[points[column] < points[column].shift(fill_value=np.inf).cummin()]
    return best.median_s.to_numpy(), best[column].to_numpy()


def time_to_snr(table, subject):
    """Seconds an example until averaged gradients have an SNR of 1, against K."""
    table = table[table.distance == SLOPE_DISTANCE]
    figure, height, rows = grid(
        table, TITLES.values(), f"Time to reach an SNR of 1, {Q_TEXT}", subject,
        2.3, 1.75, "time an example", left=0.13, wspace=0.08, hspace=0.14,
    )  # fmt: skip
    for latent, row in rows:
        for axis, part in zip(row, TITLES, strict=True):
            cell = table[table.latent == latent]
            for name in present(cell, "time", layered=True):
                one = cell[cell.estimator == name].dropna(subset=f"{part}_time_to_snr1")
                value = one[f"{part}_time_to_snr1"]
                error = one[f"{part}_time_to_snr1_error"].clip(upper=0.9 * value)
                errors(axis, one.samples, value, error, name)
            against_samples(axis, table)
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(EngFormatter("s"))
    legend(figure, present(table, "time"), height, columns=4)
    note(
        figure, height, 0.5,
        "time of a call / 64 examples / SNR²; bars: standard errors; missing where the SNR is "
        "within two errors of 0",
    )  # fmt: skip
    return figure


PAIRS = (("stl", "elbo"), ("stl", "elbo-monte-carlo"), ("dreg", "iwae"))


def losses(table, subject):
    """Variance of STL and DReG relative to the plain estimators, against the distance of q."""
    figure, height, rows = grid(
        table, [f"{ours} / {plain}" for ours, plain in PAIRS],
        "Where STL and DReG lose: the encoder's gradient variance, relative", subject,
        2.3, 1.75, "variance ratio", 1.1, "← narrower   d of q   wider →",
        wspace=0.08, hspace=0.16,
    )  # fmt: skip
    distances = sorted(table.distance.unique())
    # One run's K: the smallest, one in the middle, and the greatest at more than one distance.
    wide = table.groupby("samples").distance.nunique()
    counts = sorted(wide[wide == wide.max()].index)
    counts = sorted({counts[0], counts[len(counts) // 2], counts[-1]})
    styles = dict(zip(counts, (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^")), strict=False))
    for latent, row in rows:
        for axis, (ours, plain) in zip(row, PAIRS, strict=True):
            for samples, (colour, marker) in styles.items():
                x, y, error = ratios(table, latent, samples, ours, plain)
                axis.errorbar(
                    x, y, yerr=error, color=colour, marker=marker, markersize=4, linewidth=1.2
                )
            axis.axhline(1, color="black", linewidth=1)
            axis.set_yscale("log")
            axis.set_xticks(distances, [f"{d:g}".replace("-", "\u2212") for d in distances])
    handles = [
        Line2D([], [], color=c, marker=m, markersize=5, label=f"K = {k}")
        for k, (c, m) in styles.items()
    ]
    handles.append(Line2D([], [], color="black", linewidth=1, label="as the plain estimator"))
    anchor = (0.5, 0.04 / height)
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, bbox_to_anchor=anchor)
    note(
        figure, height, 0.34,
        "above 1 it loses; log variances of q off by d, means by |d| posterior deviations at "
        "random; bars: standard errors",
    )  # fmt: skip
    return figure


def ratios(table, latent, samples, ours, plain, part="encoder"):
    """(distances, ratios of variance, standard errors), errors as of independent estimates."""
    column = f"{part}_variance"
    cell = table[(table.latent == latent) & (table.samples == samples)].set_index("distance")
    a, b = cell[cell.estimator == ours], cell[cell.estimator == plain]
    at = sorted(a.index.intersection(b.index))
    a, b = a.loc[at], b.loc[at]
    value = a[column] / b[column]
    relative = np.hypot(a[f"{column}_error"] / a[column], b[f"{column}_error"] / b[column])
    return at, value, value * relative
