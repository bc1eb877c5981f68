"""``pytest --benchmark -k quality``: how close an estimator is to the truth, and what it costs."""

import functools

import pytest
import torch

from . import cases, clock, memory, quality, quality_cases, session

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc):
    swept = quality_cases.sweep(quality_cases.GRIDS[metafunc.config.getoption("grid")])
    ids = [cases.case_id(quality_cases.as_case(*case)) for case in swept]
    metafunc.parametrize("estimator, samples, distance, latent", swept, ids=ids)


@pytest.fixture
def suite(request):
    return request.config.pluginmanager.get_plugin(session.NAME)


@functools.cache
def peak_bytes(estimator, samples, latent):
    """Alike at all distances, and on a CPU slower to count than to time."""
    step = quality.Step(estimator, samples, 0.0, latent, DEVICE)
    step()
    return memory.peak_bytes(step, step.leaves, DEVICE)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_quality(benchmark, suite, estimator, samples, distance, latent):
    case = quality_cases.as_case(estimator, samples, distance, latent)
    suite.skip_if_spent(cases.case_id(case))
    grid = quality_cases.GRIDS[suite.config.getoption("grid")]
    benchmark.group = f"quality {case.samples} {case.distance} {case.latent}"
    # "id" is what --resume compares; "suite" tells these rows from the operations'.
    info = benchmark.extra_info
    info.update(
        suite="quality",
        id=cases.case_id(case),
        estimator=estimator,
        samples=samples,
        distance=distance,
        latent=latent,
        dtype="float32",
        batch=quality_cases.BATCH,
        clock="device" if DEVICE == "cuda" else "host",
    )
    info.update(quality.measure(estimator, samples, distance, latent, grid, DEVICE))
    info["peak_bytes"] = peak_bytes(estimator, samples, latent)

    step = quality.Step(estimator, samples, distance, latent, DEVICE)
    step()
    seconds = clock.host_clock(lambda _: step(), DEVICE, [None], 0, (3, 3))["median"]
    rounds = clock.rounds_for(grid.seconds, seconds, grid.rounds)
    benchmark.pedantic(step, setup=setup(step, suite.quiet), rounds=rounds)
    if benchmark.disabled:
        return
    stats = benchmark.stats.stats
    for part in quality.PARTS:
        snr, error = info[f"{part}_snr"], info[f"{part}_snr_error"]
        value = quality.time_to_snr(stats.median, (stats.q1, stats.q3), rounds, snr, error)
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
