"""``pytest --benchmark -k iwae``: every provider with K samples; ``-k largest``: how many fit."""

import pytest

from ..harness import clock, measure, oracle, runs
from ..harness.cases import case_id
from ..harness.machine import DEVICE
from ..harness.providers import OURS
from . import cases, largest
from .entries import ENTRIES


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        swept = cases.sweep(ENTRIES, DEVICE, metafunc.config.getoption("grid"))
        metafunc.parametrize("case", swept, ids=case_id)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_samples(benchmark, run, case):
    measure.time_case(benchmark, run, ENTRIES[case.op], case)


# Last, for on a GPU it drives the device out of memory.
@pytest.mark.benchmark(timer=clock.timer(DEVICE))
@pytest.mark.parametrize("provider", largest.names(DEVICE), ids="largest-{}".format)
def test_largest_samples(benchmark, run, provider):
    run.skip_if_spent()
    batch, latent = largest.SHAPE[DEVICE]
    benchmark.group = "largest K"
    benchmark.extra_info.update(
        suite="largest", id=run.identity, provider=provider, batch=batch, latent=latent
    )
    try:
        step, found = largest.find(provider, DEVICE, run.config.getoption("grid"))
    except Exception as error:
        if provider in OURS:
            raise
        status = "wrong" if isinstance(error, oracle.WrongResultError) else "failed"
        reason = f"largest K: {runs.reason(error)}"
        run.leave_out(status, reason, **largest.case_of(provider, DEVICE, 1)._asdict())
        pytest.skip(f"{status}: {reason}")
    benchmark.extra_info.update(found)
    benchmark.pedantic(step.run, args=(found["samples"],), rounds=1)
