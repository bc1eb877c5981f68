"""``pytest --benchmark``: every provider of every operation, checked and then timed."""

import pytest
import torch

from . import cases, clock, measure, oracle, providers, quiet, session

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PARAMETERS = "op, provider, batch, latent, dtype, direction, samples"


def pytest_generate_tests(metafunc):
    grid = DEVICE, metafunc.config.getoption("grid")
    swept = cases.sweep(cases.GRIDS[grid], lambda op: providers.names(op, DEVICE))
    swept += cases.sample_sweep(cases.SAMPLE_GRIDS[grid], lambda op: providers.names(op, DEVICE))
    swept += cases.drop_in_sweep(cases.GRIDS[grid], lambda op: providers.names(op, DEVICE))
    metafunc.parametrize(PARAMETERS, swept, ids=map(cases.case_id, swept))


@pytest.fixture
def suite(request):
    return request.config.pluginmanager.get_plugin(session.NAME)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_operation(benchmark, suite, op, provider, batch, latent, dtype, direction, samples):
    case = cases.Case(op, provider, batch, latent, dtype, direction, samples)
    suite.skip_if_spent(cases.case_id(case))
    grid = suite.grid
    # Before anything is timed: a large copy throws the caches out.
    suite.ceiling()
    benchmark.group = f"{op} {samples}x{batch}x{latent} {dtype} {direction}"
    benchmark.extra_info.update(case._asdict(), status="right")
    prepared = prepare(case, benchmark, suite)
    benchmark.extra_info["error"] = prepared.error
    benchmark.extra_info["compile_seconds"] = prepared.compile_seconds
    benchmark.extra_info["clock"] = "device" if DEVICE == "cuda" else "host"
    benchmark.extra_info["peak_bytes"] = measure.peak_memory(prepared)

    interrupted = quiet.preemptions()
    rounds = clock.rounds_for(grid.seconds, prepared.seconds, grid.rounds)
    benchmark.pedantic(
        prepared.call, setup=measure.round_setup(prepared, suite.quiet), rounds=rounds
    )
    if benchmark.disabled:
        return
    benchmark.extra_info["preemptions"] = quiet.preemptions() - interrupted
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(measure.bandwidth(case, median, suite.ceiling()))
    benchmark.extra_info.update(measure.other_clocks(prepared, grid))


def prepare(case, benchmark, suite):
    """A provider that is wrong, or does not run here, gets a report and no time.

    Our own is a failure of the suite then; another's is not, but is shown in the summary.
    """
    try:
        return measure.Prepared(case, DEVICE)
    except oracle.WrongResultError as wrong:
        status, reason = "wrong", str(wrong)
    except Exception as error:
        if case.provider in providers.OURS:
            raise
        status, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
    benchmark.extra_info.update(status=status, reason=reason)
    suite.not_timed.append(dict(benchmark.extra_info))
    outcome = pytest.fail if case.provider in providers.OURS else pytest.skip
    outcome(f"{status}, not timed: {reason}")


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
