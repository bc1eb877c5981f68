"""``pytest --benchmark``: every provider of every operation, checked and then timed."""

import pytest

from ..harness import clock, measure
from ..harness.cases import GRIDS, case_id
from ..harness.machine import DEVICE
from . import cases
from .entries import ENTRIES


def pytest_generate_tests(metafunc):
    grid = GRIDS[DEVICE, metafunc.config.getoption("grid")]
    swept = cases.of_grid(ENTRIES, DEVICE, grid)
    metafunc.parametrize("case", swept, ids=case_id)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_operation(benchmark, run, case):
    measure.time_case(benchmark, run, ENTRIES[case.op], case)
