"""Rows of the quality suite, the fitted slopes, quality.csv. No torch."""

import math

import numpy as np
import pandas as pd

from ..reporting.results import TIMES, newest_run, times
from .cases import PARTS, SLOPE_DISTANCE
from .entries import ENTRIES, THEORY

CELL = ["estimator", "samples", "distance", "latent"]
MEASURED = [
    "kl_posterior", "efficiency", "log_evidence", "exact_elbo", "exact_bound", "replicates",
    "bias", "bias_error", "gap", "gap_error", "ess", "ess_error",
    *(f"{part}_{what}{error}" for part in PARTS for what in ("variance", "snr", "time_to_snr1")
      for error in ("", "_error")),
    "peak_bytes",
]  # fmt: skip
COLUMNS = ["run", *CELL, "batch", "dtype", *MEASURED, *TIMES]
SLOPES = ["estimator", "part", "latent", "theory", "slope", "low", "high", "from_k", "to_k",
          "level"]  # fmt: skip
# The laws hold where averages of weights are nearly normal: from this many effective samples.
LEAST_ESS = 4.0
# Student's t, 97.5 %, by degrees of freedom; the normal's from there on.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}


def load(device):
    """All quality measurements of a device, one row per case and run."""
    kept = [*CELL, "batch", "dtype", *MEASURED]
    rows = [
        {"run": name}
        | {key: benchmark["extra_info"].get(key) for key in kept}
        | times(benchmark["stats"])
        for name, benchmark in device.of_suite("quality")
    ]
    numbers = [*MEASURED, *TIMES]
    return pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(numbers, float))


def measured(device):
    """quality.csv; None where nothing of it was measured."""
    table = load(device)
    return None if table.empty else table


def newest(device):
    """The rows of one run: the newest of those with the most cases."""
    table = newest_run(load(device))
    order = {name: i for i, name in enumerate(ENTRIES)}
    table = table.assign(order=table.estimator.map(order))
    columns = ["latent", "distance", "order", "samples"]
    return table.sort_values(columns).drop(columns="order").reset_index(drop=True)


def points(table, estimator, part, latent, distance=SLOPE_DISTANCE):
    """Where a slope is fitted: SNRs that are three standard errors above 0, K effective enough."""
    rows = table[
        (table.estimator == estimator) & (table.latent == latent) & (table.distance == distance)
    ]
    snr, error = rows[f"{part}_snr"], rows[f"{part}_snr_error"]
    asymptotic = rows.samples * rows.efficiency >= LEAST_ESS
    return rows[asymptotic & (snr > 3 * error)].sort_values("samples")


def slopes(table):
    """Slopes of log SNR in log K with 95 % intervals, a row for each.

    Weighted least squares, weights from the SNRs' standard errors (to first order, of the
    logarithm). The interval is Student's t on the points' own scatter about the line, or
    normal from their standard errors alone, whichever is wider.
    """
    rows = []
    for latent in sorted(table.latent.unique()):
        for (estimator, part), theory in THEORY.items():
            at = points(table, estimator, part, latent)
            if len(at) < 2:
                continue
            k, snr, error = (
                at[c].to_numpy(float) for c in ("samples", f"{part}_snr", f"{part}_snr_error")
            )
            slope, half, level = fit(k, snr, error)
            ends = slope - half, slope + half, at.samples.min(), at.samples.max()
            rows.append([estimator, part, latent, theory, slope, *ends, level])
    return pd.DataFrame(rows, columns=SLOPES)


def fit(samples, snr, error):
    """(slope, half of its 95 % interval, log SNR at K = 1) of log SNR = level + slope log K."""
    x, y = np.log(samples), np.log(snr)
    weights = (snr / np.maximum(error, 1e-12)) ** 2
    centre = np.average(x, weights=weights)
    spread = (weights * (x - centre) ** 2).sum()
    slope = (weights * (x - centre) * y).sum() / spread
    level = np.average(y, weights=weights) - slope * centre
    half = 1.96 / math.sqrt(spread)
    freedom = len(x) - 2
    if freedom:
        scatter = (weights * (y - level - slope * x) ** 2).sum() / freedom
        half = max(half, T_QUANTILES.get(freedom, 2.4) * math.sqrt(scatter / spread))
    return slope, half, level
