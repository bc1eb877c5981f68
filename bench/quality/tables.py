"""Quality in tables: a device's README, the project's pages and the terminal. No torch."""

from ..reporting.formats import number, plus_minus, seconds
from ..reporting.tables import Cell, Table
from . import results
from .cases import SLOPE_DISTANCE
from .entries import ENTRIES

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


BIASES_TEXT = (
    "Every value against the exact bound that it estimates, over all K, distances and "
    "dimensions (abs(bias) / s.e. of an unbiased one has a mean near 0.8). Rényi, CUBO (where "
    "its bound is finite) and the jackknife are biased at finite K. All cells are in "
    "[quality.csv](quality.csv)."
)
ESTIMATES = [
    "estimator", ("bias (nats)", "bias\n(nats)"), ("below log p(x) (nats)", None), ("ESS", None),
    ("SNR encoder", "SNR\nencoder"), ("SNR model", "SNR\nmodel"),
    ("time of a call", "time of\na call"), ("peak memory", None),
    ("to SNR 1: encoder", "to SNR 1:\nencoder"), ("model", None),
]  # fmt: skip
FITTED = ["estimator", "gradient of", "D", "theory", "slope", "95 %", "K"]
BIASES = ["estimator", "exact bound", "cells", "mean of abs(bias) / s.e.", "greatest",
          "greatest bias (nats)"]  # fmt: skip


def slope_table(table):
    rows = [
        [f"`{s.estimator}`", s.part, s.latent, number(s.theory, 2), number(s.slope),
         f"{number(s.low)} … {number(s.high)}", f"{s.from_k} … {s.to_k}"]
        for s in results.slopes(table).itertuples()
    ]  # fmt: skip
    return Table(FITTED, rows, "slopes of log SNR in log K")


def time_to_snr(value, error):
    return seconds(value) if value != value else f"{seconds(value)} ± {100 * error / value:.0f} %"


def estimates(cell, title=""):
    """A row an estimator; cell has one distance, K and D."""
    rows = [
        [f"`{r.estimator}`", plus_minus(r.bias, r.bias_error), plus_minus(r.gap, r.gap_error),
         number(r.ess),
         Cell(plus_minus(r.encoder_snr, r.encoder_snr_error), short=number(r.encoder_snr)),
         Cell(plus_minus(r.model_snr, r.model_snr_error), short=number(r.model_snr)),
         seconds(r.median_s), f"{r.peak_bytes / 2**20:.2g} MiB",
         Cell(time_to_snr(r.encoder_time_to_snr1, r.encoder_time_to_snr1_error),
              short=seconds(r.encoder_time_to_snr1)),
         time_to_snr(r.model_time_to_snr1, r.model_time_to_snr1_error)]
        for r in cell.itertuples()
    ]  # fmt: skip
    return Table(ESTIMATES, rows, title)


def bias_table(table):
    """For each estimator, how far its value is from the exact bound, in standard errors."""
    rows = []
    for name in ENTRIES:
        one = table[table.estimator == name].dropna(subset="bias")
        if one.empty:
            continue
        off = (one.bias / one.bias_error).abs()
        worst = one.loc[one.bias.abs().idxmax()]
        where = f"K {worst.samples}, d {worst.distance:+g}, D {worst.latent}"
        rows.append(
            [f"`{name}`", ENTRIES[name].bound, len(one), f"{off.mean():.2g}", number(off.max()),
             f"{plus_minus(worst.bias, worst.bias_error)} at {where}"]
        )  # fmt: skip
    return Table(BIASES, rows)


def by_latent(table):
    """(what it is, its cell) of each dimension that has one."""
    for latent in sorted(table.latent.unique()):
        mask = (table.samples == SAMPLES) & (table.distance == SLOPE_DISTANCE)
        if not (cell := table[mask & (table.latent == latent)]).empty:
            yield f"D = {latent}, K = {SAMPLES}, d = {SLOPE_DISTANCE:+g}", cell


def sections(device):
    """Parts of a device's README; none where nothing was measured."""
    table = results.newest(device)
    if table.empty:
        return []
    parts = ["## Quality of the estimators", INTRO, SLOPES.format(SLOPE_DISTANCE)]
    parts.append(slope_table(table))
    for where, cell in by_latent(table):
        kl = cell.kl_posterior.iloc[0]
        parts += [f"{where}: KL(q || posterior) = {kl:.3g} nats", estimates(cell)]
    return [*parts, BIASES_TEXT, bias_table(table)]


def project(devices, link):
    """For docs/choosing-an-estimator.md: the least D and the slopes of each device."""
    parts = []
    for device in devices:
        table = results.newest(device)
        for where, cell in list(by_latent(table))[:1]:
            kl = cell.kl_posterior.iloc[0]
            parts += [
                f"{link(device)}, {where} (KL(q || posterior) = {kl:.2g} nats), times of "
                "forward + backward for 64 examples:",
                estimates(cell).without("ESS", "peak memory"),
                "Slopes of log SNR in log K:",
                slope_table(table),
            ]
    return parts


def terminal(device):
    table = results.newest(device)
    for where, cell in by_latent(table):
        yield estimates(cell, f"quality: {where}")
    slopes = slope_table(table)
    if slopes.rows:
        yield slopes
