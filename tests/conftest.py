"""One suite, two machines: Triton's interpreter on a CPU, or the kernels on a CUDA device.

    pytest tests -n auto                       # interpreted kernels, no GPU needed
    TRITON_INTERPRET=0 pytest tests -m gpu     # the same tests on a GPU, and the GPU-only ones

It cannot do both in one process.
"""

import os

import pytest
import torch

from helpers.machine import INTERPRET, ON_GPU

DEVICE = pytest.param("cpu") if INTERPRET else pytest.param("cuda", marks=pytest.mark.gpu)

# Of pytest-xdist. Subprocesses are no workers: as one, pytest-benchmark writes no results.
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


def pytest_collection_modifyitems(config, items):
    """Leave out what needs a GPU where kernels are interpreted or there is none."""
    if ON_GPU:
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
