"""``pytest --benchmark -k drop_in``: losses that others wrote against what replaces them."""

import pytest

from ..harness import clock, measure
from ..harness.cases import GRIDS, case_id
from ..harness.machine import DEVICE
from . import cases
from .entries import ENTRIES


def pytest_generate_tests(metafunc):
    grid = GRIDS[DEVICE, metafunc.config.getoption("grid")]
    metafunc.parametrize("case", cases.sweep(ENTRIES, DEVICE, grid), ids=case_id)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_drop_in(benchmark, run, case):
    measure.time_case(benchmark, run, ENTRIES[case.op], case)
