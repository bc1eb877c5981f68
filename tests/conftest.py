"""One suite, four machines: a CPU's kernels in numba, or Triton's in one of three ways.

    pytest tests -n auto                           # all tests, with the kernels of this machine
    TRITON_INTERPRET=1 pytest tests -m kernels     # the kernels' tests, with Triton's interpreted
    TRITON_PTX=1 pytest tests -m kernels           # the same, compiled for NVIDIA and emulated
    TRITON_INTERPRET=0 pytest tests -m gpu         # those that need a GPU

One process cannot have two of them. ``--sample`` keeps, of each test, one case for every value of
every parameter: each dtype, layout and op is there, and most of their combinations are not.
"""

import os

import pytest
import torch

from helpers.machine import KERNELS, ON_GPU, PTX
from helpers.sampling import sampled

if PTX:
    from helpers.ptx import driver

MARKS = [pytest.mark.kernels, pytest.mark.gpu] if ON_GPU else [pytest.mark.kernels]
DEVICE = pytest.param("cuda" if ON_GPU else "cpu", marks=MARKS)

# pytest-xdist's variable. Subprocesses are no workers: in one, pytest-benchmark writes no results.
if os.environ.pop("PYTEST_XDIST_WORKER", None):
    # There is a worker a core: more threads, here and in subprocesses, wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(params=[DEVICE])
def device(request):
    """Where the kernels run: every test of a kernel takes it."""
    return request.param


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(20140414)


@pytest.fixture(scope="module")
def one_thread():
    """Many small operations: on a busy machine threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(trylast=True)  # -m and -k come first
def pytest_collection_modifyitems(config, items):
    """Leave out what needs a GPU where there is none, and what is Triton's where numba runs."""
    absent = ([] if ON_GPU else ["gpu"]) + [n for n in ("triton", "numba") if n != KERNELS]
    left_out = [i for i in items if any(i.get_closest_marker(name) for name in absent)]
    if config.getoption("sample"):
        kept = sampled([item for item in items if item not in left_out])
        left_out = [item for item in items if item not in kept]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter):
    """Report what the PTX emulator ran. With xdist each worker has its own, and this is silent."""
    if PTX and driver.LAUNCHES:
        write = terminalreporter.write_line
        write(
            f"PTX of sm_{driver.ARCH}: {driver.LAUNCHES.total()} launches, {dict(driver.LAUNCHES)}"
        )
        write(f"notes: {dict(driver.NOTES)}")
