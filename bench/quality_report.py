"""The quality suite in words and tables: a device's README, README.md, and the terminal."""

import math

from . import quality_results, report
from .quality_cases import ENTRIES, SLOPE_DISTANCE

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
SAMPLES = 16  # of the table: enough for K to matter, few enough to train with
INTRO = (
    "Linear-Gaussian model with a posterior that is not diagonal, P = 2 D, in float32; q is "
    "off the best diagonal Gaussian by d: log variances by d, means by |d| posterior standard "
    "deviations times a fixed normal draw. Gradients are one example's, in W (model) and in mu "
    "and logvar (encoder), over independent replicates with the same seeds for all estimators. "
    "Exact values in float64, L_K included. **SNR**: |mean| / standard deviation of each "
    "parameter, its square less what noise adds, the median over parameters. **Variance**: the "
    "mean over parameters. **Time to SNR 1**: time of a call / 64 examples / SNR². Standard "
    "errors: of SNR and variance by a bootstrap over 32 blocks of replicates, of values in "
    "closed form."
)
SLOPES = (
    "Fitted slopes of log SNR in log K at d = {:+g}; theory: Rainforth et al. 2018, Tucker et "
    "al. 2019. Weighted least squares where K has at least 4 effective samples in the limit "
    "and the SNR is 3 standard errors from 0; 95 % intervals from the residuals or the "
    "standard errors, whichever is wider."
)


def number(value, digits=3):
    """A number in a table, with a true minus; a dash where there is none.

    >>> number(0.012345), number(None)
    ('0.0123', '\u2013')
    """
    if value is None or math.isnan(value):
        return report.DASH
    return f"{value:.{digits}g}".replace("-", "\u2212")


def plus_minus(value, error):
    if value is None or math.isnan(value):
        return report.DASH
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 4
    return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "\u2212")


def slope_rows(slopes):
    return [
        [f"`{s.estimator}`", s.part, f"{s.latent}", f"{number(s.theory, 2)}",
         number(s.slope), f"{number(s.low)} … {number(s.high)}", f"{s.from_k} … {s.to_k}"]
        for s in slopes.itertuples()
    ]  # fmt: skip


SLOPE_HEADERS = ["estimator", "gradient of", "D", "theory", "slope", "95 %", "K"]
HEADERS = ["estimator", "bias (nats)", "below log p(x) (nats)", "ESS", "SNR encoder", "SNR model",
           "time of a call", "peak memory", "to SNR 1: encoder", "model"]  # fmt: skip


def seconds(value, error):
    if value is None or math.isnan(value):
        return report.DASH
    return f"{report.seconds(value)} ± {100 * error / value:.0f} %"


def rows(cell):
    """A row an estimator; cell has one distance, K and D."""
    return [
        [f"`{r.estimator}`", plus_minus(r.bias, r.bias_error), plus_minus(r.gap, r.gap_error),
         number(r.ess), plus_minus(r.encoder_snr, r.encoder_snr_error),
         plus_minus(r.model_snr, r.model_snr_error), report.seconds(r.median_s),
         f"{r.peak_bytes / 2**20:.2g} MiB",
         seconds(r.encoder_time_to_snr1, r.encoder_time_to_snr1_error),
         seconds(r.model_time_to_snr1, r.model_time_to_snr1_error)]
        for r in cell.itertuples()
    ]  # fmt: skip


def at(table, latent, samples=SAMPLES, distance=SLOPE_DISTANCE):
    mask = (table.latent == latent) & (table.samples == samples) & (table.distance == distance)
    return table[mask]


def bias_rows(table):
    """For each estimator, how far its value is from the exact bound, in standard errors."""
    out = []
    for name in (n for n in ENTRIES if (table.estimator == n).any()):
        one = table[(table.estimator == name)].dropna(subset="bias")
        if one.empty:
            continue
        off = (one.bias / one.bias_error).abs()
        worst = one.loc[one.bias.abs().idxmax()]
        where = f"K {worst.samples}, d {worst.distance:+g}, D {worst.latent}"
        out.append(
            [f"`{name}`", ENTRIES[name].bound, len(one), f"{off.mean():.2g}", number(off.max()),
             f"{plus_minus(worst.bias, worst.bias_error)} at {where}"]
        )  # fmt: skip
    return out


BIAS_HEADERS = ["estimator", "exact bound", "cells", "mean of abs(bias) / s.e.", "greatest",
                "greatest bias (nats)"]  # fmt: skip


def sections(device):
    """Markdown of a device's README; nothing where nothing was measured."""
    table = quality_results.newest(quality_results.load(device))
    if table.empty:
        return []
    parts = ["## Quality of the estimators", INTRO, SLOPES.format(SLOPE_DISTANCE)]
    parts.append(report.table(SLOPE_HEADERS, slope_rows(quality_results.slopes(table))))
    for latent in sorted(table.latent.unique()):
        cell = at(table, latent)
        if cell.empty:
            continue
        kl = cell.kl_posterior.iloc[0]
        parts.append(
            f"D = {latent}, K = {SAMPLES}, d = {SLOPE_DISTANCE:+g}: "
            f"KL(q || posterior) = {kl:.3g} nats"
        )
        parts.append(report.table(HEADERS, rows(cell)))
    parts.append(
        "Every value against the exact bound that it estimates, over all K, distances and "
        "dimensions (abs(bias) / s.e. of an unbiased one has a mean near 0.8). Rényi, CUBO (where "
        "its bound is finite) and the jackknife are biased at finite K. All cells are in "
        "[quality.csv](quality.csv)."
    )
    parts.append(report.table(BIAS_HEADERS, bias_rows(table)))
    return parts


def project_section(folder):
    """For README.md: the slopes and one table of each device; CPUs last."""
    devices = report.results.devices(folder)
    parts = []
    for device in sorted(devices, key=lambda d: (d.name.startswith("cpu"), d.name)):
        table = quality_results.newest(quality_results.load(device))
        if table.empty:
            continue
        _, run = report.newest_run(device)
        latent = table.latent.min()
        cell = at(table, latent)
        where = f"[{run['machine_info']['device_name']}]({folder.name}/{device.name}/README.md)"
        parts.append(
            f"{where}, D = {latent}, K = {SAMPLES}, d = {SLOPE_DISTANCE:+g} "
            f"(KL(q || posterior) = {cell.kl_posterior.iloc[0]:.2g} nats), times of "
            "forward + backward for 64 examples:"
            if not cell.empty
            else where
        )
        short = [0, 1, 2, 4, 5, 6, 8, 9]
        lines = [[row[i] for i in short] for row in rows(cell)]
        parts.append(report.table([HEADERS[i] for i in short], lines))
        parts.append("Slopes of log SNR in log K:")
        parts.append(report.table(SLOPE_HEADERS, slope_rows(quality_results.slopes(table))))
    return "\n\n".join(parts) or "No measurements yet."


def show(device, console):
    """In the terminal: the same tables, the narrow columns of them."""
    from rich.table import Table

    table = quality_results.newest(quality_results.load(device))
    if table.empty:
        return
    short = [0, 1, 4, 5, 6, 8]
    for latent in sorted(table.latent.unique()):
        title = f"quality: D = {latent}, K = {SAMPLES}, d = {SLOPE_DISTANCE:+g}"
        print_table(console, Table, title, [HEADERS[i] for i in short],
                    [[row[i] for i in short] for row in rows(at(table, latent))])  # fmt: skip
    lines = slope_rows(quality_results.slopes(table))
    print_table(console, Table, "slopes of log SNR in log K", SLOPE_HEADERS, lines)


def print_table(console, kind, title, headers, lines):
    if not lines:
        return
    shown = kind(title=title, title_justify="left", title_style="bold", box=None)
    for header in headers:
        shown.add_column(header, justify="left" if header == headers[0] else "right")
    for line in lines:
        shown.add_row(*(cell.strip("`") for cell in line))
    console.print(shown)
