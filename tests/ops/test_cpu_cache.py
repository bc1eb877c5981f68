"""The machine code of CPU kernels on disk: who finds it, and that it is what was asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fused_elbo.kernels.numba import launch

pytestmark = [pytest.mark.kernels, pytest.mark.numba]


def run(program, **environment):
    process = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_no_writable_folder():
    """As in a container whose packages and whose home are read-only: compiled in every process."""
    run("""
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, file: None)
import torch, fused_elbo
kl = fused_elbo.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3), impl="numba")
assert kl.tolist() == [1.5, 1.5]
""")


CACHED = """
import torch
from copied.numba.gaussian_kl import gaussian_kl, gaussian_kl_kernel
kl = gaussian_kl(torch.ones(1, 20), torch.zeros(1, 20), None, None).item()
print(kl, gaussian_kl_kernel.stats.cache_hits.total())
"""


def test_machine_code_on_disk_follows_all_sources(tmp_path):
    """It is read again, but not after a change of any file, of which numba sees the kernel's."""
    kernels = Path(launch.__file__).parents[1]
    ignored = shutil.ignore_patterns("__pycache__", "triton")
    shutil.copytree(kernels, tmp_path / "copied", ignore=ignored)
    folders = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def kl_and_hits():
        return [float(number) for number in run(CACHED, **folders).split()]

    assert kl_and_hits() == [10.0, 0]
    assert kl_and_hits() == [10.0, 1]
    sums = tmp_path / "copied" / "numba" / "sums.py"
    sums.write_text(sums.read_text().replace("total += values[i]", "total += 3.0 * values[i]"))
    assert kl_and_hits() == [30.0, 0]


NAMES = """
import collections, importlib, inspect, pkgutil
import numba

found = collections.Counter()
njit = numba.njit

def counting(**options):
    def decorate(function):
        # What Python calls of a kernel has its name, but takes any arguments.
        any_arguments = function.__code__.co_flags & inspect.CO_VARARGS
        found[function.__module__, function.__qualname__, any_arguments] += 1
        return njit(**options)(function)
    return decorate

numba.njit = counting
import fused_elbo.kernels.numba as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package.__name__}.{module.name}")
print(len(found), [name for name, count in found.items() if count > 1])
"""


def test_no_two_functions_have_one_name():
    """By its name numba finds machine code: of two on disk one ran for both."""
    count, names = run(NAMES).split(" ", 1)
    assert int(count) > 200
    assert names.strip() == "[]"


ONES = "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]\n"


def test_machine_code_of_another_dtype_is_not_run(tmp_path):
    """Which two processes that compile at once can leave behind."""
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    program = """
import torch
from fused_elbo.kernels.numba.mixture_log_prob import components_of
logvar = torch.zeros(2, 3, dtype=torch.{})
_, inverse_std, _ = components_of(logvar.dtype, logvar, logvar, None, None)
print(inverse_std.tolist())
"""
    for dtype in ("float32", "float64"):
        assert run(program.format(dtype), **folder) == ONES
    first, second = sorted(tmp_path.rglob("*precision_kernel*.nbc"))
    shutil.copy(second, first)
    assert run(program.format("float32"), **folder) == ONES
