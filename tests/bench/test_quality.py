"""The quality suite's own arithmetic: known answers, a wrong estimator, redrawing."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.harness import runs
from bench.quality import cases, exact, measure, results, tables
from bench.quality.entries import ENTRIES
from bench.reporting.results import Device
from fused_elbo.estimators import bounds
from fused_elbo.estimators.diagnostics import Sums, mean_variance, signal_to_noise, with_error
from helpers import exact_bounds, fake_runs

GRID = cases.GRIDS["smoke"]


def sums_of(values):
    """As the suite makes them, of values [R, n]."""
    sums = Sums(cases.BLOCKS)
    sums.add(values, torch.arange(len(values)) * sums.blocks // len(values))
    return sums


def test_moments_of_a_hand_made_case():
    """Gradients whose mean and variance are known without sampling: +-1 about m in turn."""
    signs = torch.tensor([1.0, -1.0]).repeat(1600).unsqueeze(1)
    means = torch.tensor([0.5, -2.0, 8.0])
    deviations = torch.tensor([1.0, 2.0, 4.0])
    sums = sums_of(means + deviations * signs)
    snr, snr_error = with_error(signal_to_noise, sums)
    variance, variance_error = with_error(mean_variance, sums)
    assert snr == pytest.approx(1.0, rel=1e-3)  # the median of 0.5, 1 and 2
    assert variance == pytest.approx(7.0 * 3200 / 3199)
    assert snr_error == pytest.approx(0.0, abs=1e-6)  # all blocks are alike
    assert variance_error == pytest.approx(0.0, abs=1e-6)


def test_errors_are_those_of_normal_samples():
    count, parameters = 6400, 400
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(count, parameters, generator=generator, dtype=torch.float64)
    variance, error = with_error(mean_variance, sums_of(0.3 + noise))
    expected = (2 / count / parameters) ** 0.5
    assert variance == pytest.approx(1.0, abs=4 * expected)
    assert error == pytest.approx(expected, rel=0.5)
    snr, snr_error = with_error(signal_to_noise, sums_of(0.3 + noise))
    assert snr == pytest.approx(0.3, abs=5 * snr_error)
    # No signal gives none: |mean| / std itself would say 0.8 / sqrt(count).
    snr, _ = with_error(signal_to_noise, sums_of(noise))
    assert snr < 0.3 / count**0.5


def test_bias_and_its_error():
    values = torch.tensor([1.0, -1.0]).repeat(800).unsqueeze(1) + torch.tensor([3.0, 5.0])
    difference, error = measure.bias(sums_of(values), torch.tensor([2.0, 4.0]))
    assert difference == pytest.approx(1.0)
    assert error == pytest.approx((2 / 1600) ** 0.5 / 2, rel=1e-3)


def test_time_to_snr():
    value, error = measure.time_to_snr(64e-3, (64e-3, 64e-3), 9, 0.5, 0.05)
    assert value == pytest.approx(4e-3)
    assert error == pytest.approx(0.2 * 4e-3)
    assert measure.time_to_snr(1.0, (1.0, 1.0), 9, 0.1, 0.06) == (None, None)


@pytest.mark.parametrize("problem", [exact_bounds.LINE, exact_bounds.PLANE])
def test_exact_bounds_are_the_grids(problem):
    """Integrals over a line against D-dimensional quadrature, and the closed form at K = 1."""
    truth = exact.Exact(problem.model(), problem.x, problem.q())
    torch.testing.assert_close(truth.iwae(1), truth.elbo, rtol=0, atol=1e-9)
    for samples in (2, 100):
        wanted = exact_bounds.exact(problem, samples).value
        torch.testing.assert_close(truth.iwae(samples), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", [-2.0, 2.0])
def test_exact_bounds_far_from_the_posterior(distance):
    """In 16 dimensions: L_1 is the ELBO, and L_K rises to log p(x)."""
    _, truth = measure.problem(distance, 16)
    torch.testing.assert_close(truth.iwae(1), truth.elbo, rtol=0, atol=1e-6)
    ladder = torch.stack([truth.iwae(4**i) for i in range(6)] + [truth.evidence])
    assert (ladder.diff(dim=0) > 0).all()


def measured_bias(estimator):
    info = measure.measure(estimator, 4, cases.SLOPE_DISTANCE, 2, GRID)
    return info["bias"] / info["bias_error"]


def test_a_wrong_estimator_shows(monkeypatch):
    """IWAE's bound without its log K, and the well-known sum of v_k log w_k."""
    assert abs(measured_bias("iwae")) < 4
    assert abs(measured_bias("elbo")) < 4

    def sum_of_weights(draws):
        log_weights, surrogate, bound = bounds.dreg(draws)
        return log_weights, surrogate, bound + torch.log(torch.tensor(1.2))

    def no_bound(draws):
        log_weights, surrogate, _ = bounds.dreg(draws)
        return log_weights, surrogate, (torch.softmax(log_weights, 0) * log_weights).sum(0)

    for wrong in (sum_of_weights, no_bound):
        entry = dataclasses.replace(bounds.ESTIMATORS["iwae"], function=wrong)
        monkeypatch.setitem(bounds.ESTIMATORS, "iwae", entry)
        assert abs(measured_bias("iwae")) > 10


def test_all_estimators_meet_the_same_noise():
    made, _ = measure.problem(0.5, 2)
    weights = [
        measure.replicate(ENTRIES[n], 4, made, 64, seed=4)["ess"].first
        for n in ("iwae", "dreg", "rws")
    ]
    assert torch.allclose(weights[0], weights[1])
    assert torch.allclose(weights[0], weights[2])


def test_slope_of_a_power_law():
    samples = np.array([4.0, 16.0, 64.0])
    slope, half, level = results.fit(samples, 3 * samples**-0.5, 0.03 * samples**-0.5)
    assert slope == pytest.approx(-0.5)
    assert level == pytest.approx(np.log(3))
    assert half == pytest.approx(1.96 * 0.01 / (np.log(4) * 2**0.5), rel=1e-6)


def made_up_quality():
    """Every case of a small sweep: IWAE's and DReG's SNRs as theory has them."""
    grid = GRID._replace(samples=(1, 4, 16, 64, 256), distances=(-1.0, 0.0, 0.5), latents=(4,))
    benchmarks = []
    for estimator, samples, distance, latent in cases.sweep(grid):
        slope = {"iwae": -0.5, "dreg": 0.5}.get(estimator, 0.0)
        snr = {"model": samples**0.5, "encoder": 0.5 * samples**slope}
        info = dict.fromkeys(results.MEASURED, 1.0) | {
            "suite": "quality", "id": cases.case_id(estimator, samples, distance, latent),
            "estimator": estimator, "samples": samples, "distance": distance, "latent": latent,
            "batch": 64, "dtype": "float32", "gap": 1 / samples, "gap_error": 0.01,
            "log_evidence": -3.0, "exact_elbo": -4.0, "efficiency": 0.5,
        }  # fmt: skip
        for part, value in snr.items():
            info |= {f"{part}_snr": value, f"{part}_snr_error": 0.01 * value}
            info |= {f"{part}_variance": 1 / value, f"{part}_variance_error": 0.01 / value}
        stats = {"median": 1e-3 * samples, "q1": 9e-4, "q3": 1.1e-3, "rounds": 5}
        benchmarks.append({"extra_info": info, "stats": stats})
    return benchmarks


@pytest.mark.parametrize("alone", [True, False])
def test_redrawn_the_same_without_torch(tmp_path, alone):
    output = fake_runs.of_operations(1, {"eager": 4e-6, "fused_elbo": 2e-6})
    output["benchmarks"] = made_up_quality() + ([] if alone else output["benchmarks"])
    folder = tmp_path / "results"
    device = fake_runs.write(folder, 1, output)
    if alone:
        fake_runs.redraw_twice(folder, tmp_path / "twin")
    else:  # the other's operations are redrawn twice in test_reporting.py
        fake_runs.redraw(folder)
    assert sum(p.name.startswith("quality-") for p in folder.rglob("*.png")) == 5
    text = (device / "README.md").read_text()
    assert "| `iwae` | encoder | 4 | \u22120.5 | \u22120.5 |" in text
    assert "| `dreg` | encoder | 4 | 0.5 | 0.5 |" in text
    identity = {"quality-iwae-K16-q+0.5-D4"}
    assert identity <= runs.measured(folder, output["commit_info"]["id"])
    parts = tables.project([Device(device)], lambda device: device.folder.name)
    assert "`iwae`" in [row[0] for row in parts[1].rows]
