"""``pytest --benchmark -k mixtures``: losses that compare all pairs, checked and then timed."""

import pytest

from ..harness import clock, measure
from ..harness.cases import case_id
from ..harness.machine import DEVICE
from ..reporting.formats import size
from . import cases
from .entries import ENTRIES

# Bytes that a case may need. Beyond them a call of the compiled textbook takes some 6 s on two
# cores, and eager PyTorch takes 20 GiB.
LIMIT = {"cpu": 2**32, "cuda": 2**35}


def pytest_generate_tests(metafunc):
    swept = cases.sweep(ENTRIES, DEVICE, metafunc.config.getoption("grid"))
    metafunc.parametrize("case", swept, ids=case_id)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
def test_mixtures(benchmark, run, case):
    needed, limit = ENTRIES[case.op].needed(case), LIMIT[DEVICE]
    if needed > limit:
        reason = f"needs {size(needed)}, above {size(limit)}"
        run.leave_out("left out", reason, **case._asdict())
        pytest.skip(reason)
    measure.time_case(benchmark, run, ENTRIES[case.op], case)
