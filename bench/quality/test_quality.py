"""``pytest --benchmark -k quality``: how close an estimator is to the truth, and what it costs."""

import functools

import pytest

from ..harness import clock, memory
from ..harness.machine import DEVICE
from . import cases, measure


def pytest_generate_tests(metafunc):
    swept = cases.sweep(cases.GRIDS[metafunc.config.getoption("grid")])
    ids = [cases.case_id(*case) for case in swept]
    metafunc.parametrize("estimator, samples, distance, latent", swept, ids=ids)


@functools.cache
def peak_bytes(estimator, samples, latent):
    """Alike at all distances, and on a CPU slower to count than to time."""
    step = measure.Step(estimator, samples, 0.0, latent, DEVICE)
    step()
    return memory.peak_bytes(step, step.leaves, DEVICE)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_quality(benchmark, run, estimator, samples, distance, latent):
    run.skip_if_spent()
    grid = cases.GRIDS[run.config.getoption("grid")]
    benchmark.group = f"quality K{samples} q{distance:+g} D{latent}"
    info = benchmark.extra_info
    info.update(
        suite="quality", id=run.identity, estimator=estimator, samples=samples, distance=distance,
        latent=latent, dtype="float32", batch=cases.BATCH,
        clock="device" if DEVICE == "cuda" else "host",
    )  # fmt: skip
    info.update(measure.measure(estimator, samples, distance, latent, grid, DEVICE))
    info["peak_bytes"] = peak_bytes(estimator, samples, latent)

    step = measure.Step(estimator, samples, distance, latent, DEVICE)
    step()
    seconds = clock.host_clock(lambda _: step(), DEVICE, [None], 0, (3, 3))["median"]
    rounds = clock.rounds_for(grid.seconds, seconds, grid.rounds)
    benchmark.pedantic(step, setup=setup(step, run.quiet), rounds=rounds)
    if benchmark.disabled:
        return
    stats = benchmark.stats.stats
    for part in cases.PARTS:
        snr, error = info[f"{part}_snr"], info[f"{part}_snr_error"]
        value = measure.time_to_snr(stats.median, (stats.q1, stats.q3), rounds, snr, error)
        info[f"{part}_time_to_snr1"], info[f"{part}_time_to_snr1_error"] = value


def setup(step, quiet):
    """Before each round, untimed: a cold device, or a CPU that others leave alone."""
    if DEVICE == "cuda":
        return clock.ColdStart(clock.enqueue_seconds(lambda _: step(), [None]))

    def wait():
        if quiet.disturbed():
            quiet.wait()
            step()

    return wait
