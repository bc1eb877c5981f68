"""``pytest --benchmark -k test_counts``: the likelihoods of counts, checked and then timed."""

import pytest

from ..harness import clock, measure
from ..harness.cases import case_id
from ..harness.machine import DEVICE
from . import cases
from .entries import ENTRIES


def pytest_generate_tests(metafunc):
    swept = cases.sweep(ENTRIES, DEVICE, metafunc.config.getoption("grid"))
    metafunc.parametrize("case", swept, ids=case_id)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_counts(benchmark, run, case):
    measure.time_case(benchmark, run, ENTRIES[case.op], case)
