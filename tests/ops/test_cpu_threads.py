"""The kernels for CPUs as guests of a process: its threads, its children, its folders."""

import multiprocessing
import os
import threading
import weakref

import numba
import numpy as np
import pytest
import torch

from fused_elbo import gaussian_kl, rsample_kl
from fused_elbo.kernels.numba import launch, memory
from fused_elbo.kernels.numba.gaussian_kl import gaussian_kl_kernel
from helpers.op_calls import op_calls, results_of
from helpers.oracle import kl_parts

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
# Tiles of several rows, several tiles a range, and rows of several tiles: of noise, of all kernels.
SHAPES = [(101, 50), (1001, 20), (9, 1100), (2, 4100)]


@pytest.fixture
def threads(monkeypatch):
    """Sets torch's number of threads, with no operation too small for all of them."""
    monkeypatch.setattr(launch, "PARALLEL", 0)
    monkeypatch.setattr(launch, "RANGE", 1)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def new_queue():
    return np.zeros(memory.QUEUE, np.int64)


@numba.njit(nogil=True)
def count_elements(queue, step, rows, cols, counts):
    for row, count, col, width in memory.tiles(queue, step, rows, cols):
        counts[row : row + count, col : col + width] += 1


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (1000, 1), (1, 5000), *SHAPES], ids=str)
def test_each_element_is_in_one_tile(shape, step, number):
    """Several threads take rows from one queue; a late one finds none left."""
    queue, counts = new_queue(), np.zeros(shape, int)
    arguments = queue, step, *shape, counts
    running = [threading.Thread(target=count_elements, args=arguments) for _ in range(number)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert (counts == 1).all()
    assert queue[1] == shape[0] * -(-shape[1] // memory.TILE)


def test_tiles_of_one_row_are_shared():
    """Where another thread has the first tile of a row, this one gets the others."""
    queue, counts = new_queue(), np.zeros((1, 3 * memory.TILE), int)
    queue[0] = 1
    count_elements(queue, 1, *counts.shape, counts)
    assert (counts[:, : memory.TILE] == 0).all()
    assert (counts[:, memory.TILE :] == 1).all()


@numba.njit
def first_buffer(scratch, queue):
    return memory.workspace(scratch, queue).ctypes.data


def test_each_thread_has_a_workspace_of_its_own():
    queue, scratch = new_queue(), launch.scratch_of(torch.float32, 3)
    addresses = [first_buffer(scratch, queue) for _ in range(3)]
    assert addresses == [part.ctypes.data for part in scratch]


def test_a_kernel_runs_in_as_many_threads_as_torch_has(threads):
    """Each of them has taken a workspace, whether or not rows were left for it."""
    mu, kl = torch.zeros(1000, 100), torch.empty(1000)
    for number in (1, 2, 5):
        threads(number)
        queue = new_queue()
        assert launch.threads_for(mu.numel()) == number
        operands = [memory.operand(t) for t in (mu, mu, None, None, kl)]
        scratch = launch.scratch_of(torch.float32, number)
        gaussian_kl_kernel(launch.OPENMP, number, queue, 10, *mu.shape, scratch, *operands)
        assert queue.tolist()[1:3] == [1000, number]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(shape, threads):
    calls = op_calls("cpu", *shape)
    threads(1)
    expected = list(results_of(calls))
    for number in (2, 3, 7):
        threads(number)
        assert_equal(results_of(calls), expected)
        assert torch.get_num_threads() == number


# Kernels by which a row is one thread's: the softmax of a row, a block of rows or components; and
# the sum of a loss over all rows.
BY_ROWS = "categorical discretized importance kl_decomposition marginals mixture multinomial"
BY_ROWS += " softmax total"


def test_threads_share_a_long_row(threads, monkeypatch):
    """Each launch of one row has as many parts as the row has tiles."""
    parts, call = {}, launch.call

    def watch(kernel, *arguments):
        call(kernel, *arguments)
        parts[kernel.__name__] = arguments[2][1]

    threads(2)
    monkeypatch.setattr(launch, "call", watch)
    by_rows = tuple(BY_ROWS.split())
    calls = op_calls("cpu", 1, 3 * memory.TILE).items()
    list(results_of({name: c for name, c in calls if not name.startswith(by_rows)}))
    parts = {name: number for name, number in parts.items() if not name.startswith(by_rows)}
    assert len(parts) > 10
    assert [name for name, number in parts.items() if number < 3] == []


def test_one_row_trains_alike_in_every_number_of_threads(threads):
    """Mean-field inference over weights: one row, forward and backward."""
    mu, logvar = torch.randn(2, 1, 100_001).requires_grad_().unbind()
    found = []
    for number in (1, 2, 3):
        threads(number)
        torch.manual_seed(0)
        z, kl = rsample_kl(mu, logvar, impl="numba")
        loss = (z.square().sum() + kl).sum()
        found.append([z, kl, *torch.autograd.grad(loss, (mu, logvar))])
    assert_equal(found[1], found[0])
    assert_equal(found[2], found[0])


@pytest.mark.parametrize("number", [1, 2])
def test_a_call_keeps_nothing(number, threads, monkeypatch):
    """numba keeps no reference to what a kernel was given."""
    queues, call = [], launch.call

    def watch(kernel, *arguments):
        queues.append((kernel, weakref.ref(arguments[2])))
        call(kernel, *arguments)

    threads(number)
    monkeypatch.setattr(launch, "call", watch)
    list(results_of(op_calls("cpu", *SHAPES[0])))
    assert len(queues) > 20
    assert [kernel for kernel, queue in queues if queue() is not None] == []


def test_eight_threads_at_once(threads):
    threads(2)
    calls = op_calls("cpu", *SHAPES[0])
    expected, failures = list(results_of(calls)), []

    def work():
        try:
            for _ in range(5):
                assert_equal(results_of(calls), expected)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert failures == []


def work_in_child(queue, calls, expected):
    """All with fewer elements than torch gives to OpenMP, which hangs in a forked child."""
    actual = list(results_of(calls))
    torch.set_num_threads(1)
    assert_equal(actual, expected)
    queue.put("equal")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has none")
def test_a_forked_child_works_alone(threads):
    """OpenMP's threads are the parent's: to wait for them would be to wait forever."""
    threads(2)
    calls = op_calls("cpu", *SHAPES[0])
    expected = list(results_of(calls))
    assert launch.threads_for(1e6) == 2
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=work_in_child, args=(queue, calls, expected))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert child.exitcode == 0
    assert queue.get() == "equal"


def test_without_openmp_one_thread_does_it(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(launch, "OPENMP", 0)
    assert launch.threads_for(1e6) == 1


def test_a_single_huge_row():
    """Some 2,400 tiles: no error that grows with the row."""
    mu, logvar = torch.randn(2, 1, 5_000_000)
    exact = sum(kl_parts(mu.double(), logvar.double())).sum(-1)
    error, usual = (
        (gaussian_kl(mu, logvar, impl=impl) - exact).abs().item() for impl in ("numba", "reference")
    )
    assert error <= 2 * usual + 1e-7 * exact.item()
