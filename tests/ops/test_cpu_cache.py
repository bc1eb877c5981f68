"""The machine code of CPU kernels on disk: who finds it, and that it is what was asked for."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fused_elbo.estimators.warm_up import warm_up
from fused_elbo.kernels.numba import cache, launch

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


TINY = """
import numpy as np
from fused_elbo.kernels.numba.compiler import kernel

@kernel
def three(queue, value):
    queue[0] = value + 3

def run():
    queue = np.zeros(1, np.int64)
    three(0, 1, queue, 4)
    print(queue[0], three.stats.cache_hits.total())
"""


@pytest.fixture
def tiny(tmp_path):
    """A program's beginning, of a kernel that is compiled in a moment, and what it prints."""
    (tmp_path / "tiny.py").write_text(TINY)
    folders = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def value_and_hits(before="", **environment):
        program = f"{before}\nimport tiny\ntiny.run()"
        return [int(number) for number in run(program, **folders | environment).split()]

    return value_and_hits


def only_file(folder):
    (file,) = folder.rglob("*.nbc")
    return file


def test_a_damaged_file_is_compiled_anew_and_replaced(tiny, tmp_path):
    assert tiny() == [7, 0]
    assert tiny() == [7, 1]
    file = only_file(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert tiny() == [7, 0]
    assert tiny() == [7, 1]
    assert only_file(tmp_path).stat().st_size > len(whole) // 2


FULL = """
from pathlib import Path
def full(path, content):
    path.touch()
    raise OSError(28, "No space left on device", str(path))
Path.write_bytes = full
"""


def test_a_full_disk(tiny, tmp_path):
    assert tiny(FULL) == [7, 0]
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []


READ_ONLY = """
write = Path.write_bytes
def elsewhere(path, content):
    if path.is_relative_to(cache.HERE):
        raise PermissionError(13, "Permission denied", str(path))
    return write(path, content)
Path.write_bytes = elsewhere
"""


def test_no_folder(tiny, tmp_path):
    """As in a container whose packages and whose home are read-only."""
    (tmp_path / "file").touch()
    assert tiny(NUMBA_CACHE_DIR=str(tmp_path / "file")) == [7, 0]


# Names of numba, which may move any of them.
GONE = {
    "_reduce": "numba.core.compiler.CompileResult",
    "_rebuild": "numba.core.compiler.CompileResult",
    "magic_tuple": "numba.core.codegen.CPUCodegen",
}


@pytest.mark.parametrize("name", GONE)
def test_without_what_the_cache_leans_on(tiny, name):
    before = f"import numba.core.compiler\ndel {GONE[name]}.{name}\n"
    assert tiny(before) == [7, 0]
    assert tiny(before) == [7, 0]


def random_bytes(content):
    return np.random.default_rng(0).bytes(len(content))


def one_bit(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "random": random_bytes,
    "one bit": one_bit,
    "longer": lambda content: content + b"0",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_seen(tmp_path, damage):
    path, payload = tmp_path / "kernel.nbc", bytes(range(256))
    cache.write(path, payload)
    assert cache.read(path) == payload
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(path) is None
    cache.write(path, payload)
    assert cache.read(path) == payload


def test_what_another_numba_wrote_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "kernel.nbc"
    monkeypatch.setattr(cache.numba, "__version__", "0.0.1")
    monkeypatch.setattr(cache, "STAMP", cache.stamp_of(cache.HERE))
    cache.write(path, b"code")
    monkeypatch.undo()
    assert cache.read(path) is None


def test_a_folder_that_vanishes(tmp_path):
    path = tmp_path / "a" / "b" / "kernel.nbc"
    for _ in range(2):
        cache.write(path, b"code")
        assert cache.read(path) == b"code"
        shutil.rmtree(tmp_path / "a")
        assert cache.read(path) is None


def test_two_write_at_once(tmp_path):
    """A reader finds one or the other, whole."""
    path, payloads = tmp_path / "kernel.nbc", [bytes([i]) * 300_000 for i in range(2)]
    cache.write(path, payloads[0])
    stop = threading.Event()

    def write_on(payload):
        while not stop.is_set():
            cache.write(path, payload)

    writers = [threading.Thread(target=write_on, args=(payload,)) for payload in payloads]
    for writer in writers:
        writer.start()
    found = {cache.read(path) for _ in range(500)}
    stop.set()
    for writer in writers:
        writer.join()
    assert found <= set(payloads)


def test_a_read_only_folder_is_read(tiny, tmp_path):
    """An image that another user built brings its code, and new code goes where it may."""
    before = """
from pathlib import Path
from fused_elbo.estimators.warm_up import warm_up
from fused_elbo.kernels.numba import cache
cache.HERE = Path({!r})
"""
    package = before.format(str(tmp_path / "package"))
    home = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "home")}
    assert tiny(package, **home) == [7, 0]
    assert only_file(tmp_path).is_relative_to(tmp_path / "package")
    assert tiny(package + READ_ONLY, **home) == [7, 1]
    only_file(tmp_path).unlink()
    assert tiny(package + READ_ONLY, **home) == [7, 0]
    assert only_file(tmp_path).is_relative_to(tmp_path / "home")
    assert tiny(package + READ_ONLY, **home) == [7, 1]


def test_no_home(monkeypatch):
    monkeypatch.setattr(cache.numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(cache.Path, "home", home)
    assert cache.folders() == [cache.HERE / "__pycache__"]


REFUSED = """
import torch, fused_elbo
mu, logvar = torch.ones(2, 3), torch.zeros(2, 3)
assert fused_elbo.gaussian_kl(mu, logvar).tolist() == [1.5, 1.5]
try:
    fused_elbo.gaussian_kl(mu, logvar, impl="numba")
except RuntimeError as error:
    print(error)
"""


def test_numba_that_compiles_nothing():
    assert "NUMBA_DISABLE_JIT is set" in run(REFUSED, NUMBA_DISABLE_JIT="1")


# Parts of numba that kernels are compiled with.
NEEDED = {
    "call_internal_no_propagate": "numba.core.base.BaseContext",
    "noalias": "numba.core.compiler.Flags",
    "get_compile_result": "numba.core.dispatcher.Dispatcher",
    "unpack_tuple": "numba.core.cgutils",
}


@pytest.mark.parametrize("name", NEEDED)
def test_without_what_kernels_lean_on(name):
    """The reference serves, and who asks for numba hears what is missing."""
    before = f"import numba.core.dispatcher\ndel {NEEDED[name]}.{name}\n"
    assert name in run(before + REFUSED)


# Private names that only the faster way to compile needs, each as it would be missing.
FASTER = {
    "AnnotateTypes": "import numba.core.typed_passes as owner; del owner.AnnotateTypes",
} | {
    name: f"""
def found(self, name):
    if name == {name!r} and type(self).__name__ == "HelperLibrary":
        raise AttributeError(name)
    return object.__getattribute__(self, name)
numba.core.codegen.JITCodeLibrary.__getattribute__ = found
"""
    for name in (
        "_final_module",
        "_get_module_for_linking",
        "_linking_libraries",
        "_raise_if_finalized",
        "_shared_module",
    )
}


def test_the_faster_way_is_taken():
    pipeline = "from fused_elbo.kernels.numba import compiler; print(compiler.Pipeline.__name__)"
    assert run(pipeline) == "Helper\n"


@pytest.mark.parametrize("name", FASTER)
def test_without_the_faster_way_kernels_are_compiled_the_ordinary_one(name, tiny):
    before = f"""
import numba.core.codegen, numba.core.compiler
{FASTER[name]}
from fused_elbo.kernels.numba import compiler
assert compiler.Pipeline is numba.core.compiler.Compiler
"""
    assert tiny(before) == [7, 0]


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
        # Python calls a wrapper with the kernel's name, which takes any arguments.
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
    """numba finds machine code by name: of two on disk one ran for both."""
    count, names = run(NAMES).split(" ", 1)
    assert int(count) > 200
    assert names.strip() == "[]"


ONES = "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]\n"


def test_machine_code_of_another_dtype_is_not_run(tmp_path):
    """Two processes that compile at once can leave such a file behind."""
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    program = """
import torch
from fused_elbo.kernels.numba.mixture_log_prob import components_of
logvar = torch.zeros(2, 3, dtype=torch.{})
_, inverse_std, _ = components_of(logvar.dtype, logvar, logvar, None)
print(inverse_std.tolist())
"""
    for dtype in ("float32", "float64"):
        assert run(program.format(dtype), **folder) == ONES
    first, second = sorted(tmp_path.rglob("*precision_kernel*.nbc"))
    shutil.copy(second, first)
    assert run(program.format("float32"), **folder) == ONES


LOGGED = """
import logging, sys, warnings
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
warnings.showwarning = lambda message, *place: print("warning:", message)
sys.stderr.isatty = lambda: True
sys.stderr.write = sys.stdout.write
import tiny
tiny.run()
tiny.run()
"""


def test_whoever_waits_is_told_once(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    folders = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    first, again = run(LOGGED, **folders), run(LOGGED, **folders)
    told = "python -m fused_elbo.warm_up compiles them ahead"
    assert first.count(told) == 2  # in the log and at the terminal
    assert "fused_elbo compiling kernels" in first
    assert "warning" not in first
    assert told not in again


def test_where_nothing_can_be_kept_a_warning_says_what_to_do(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "file").touch()
    folders = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "file")}
    told = run(LOGGED, **folders)
    assert told.count("warning:") == 1
    assert "NUMBA_CACHE_DIR" in told.split("warning:")[1]
    assert "python -m fused_elbo.warm_up" in told.split("warning:")[1]


def test_warm_up_compiles_what_is_called_later(tmp_path):
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = run(
        "from fused_elbo.estimators.warm_up import main; main(['--ops', 'gaussian_kl'])", **folder
    )
    assert done.splitlines()[0] == "gaussian_kl float32 ..."
    assert done.splitlines()[-1].startswith("2 kernels in ")
    assert str(tmp_path) in done
    hits = run(
        """
import torch, fused_elbo
from fused_elbo.kernels.numba import gaussian_kl
mu, logvar = torch.ones(2, 300, requires_grad=True), torch.zeros(300)
fused_elbo.gaussian_kl(mu, logvar).sum().backward()
for kernel in (gaussian_kl.gaussian_kl_kernel, gaussian_kl.gaussian_kl_backward_kernel):
    print(kernel.stats.cache_hits.total(), kernel.stats.cache_misses.total())
""",
        **folder,
    )
    assert hits == "1 0\n1 0\n"


COVERED = """
import importlib, pkgutil
import torch
from fused_elbo.kernels import library, numba
from fused_elbo.estimators.warm_up import warm_up

launched, find = set(), library.implementation

def noted(finder, backend, family, name):
    launched.add(name)
    return find(finder, backend, family, name)

library.implementation = noted
warm_up()
known = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fused_elbo::")]
assert len(known) > 40
print(sorted({name.partition("::")[2] for name in known} - launched))

from fused_elbo.kernels.numba.launch import compiled
modules = [f"{numba.__name__}.{module.name}" for module in pkgutil.iter_modules(numba.__path__)]
kernels = {
    name: value
    for module in modules
    for name, value in vars(importlib.import_module(module)).items()
    if name.endswith("_kernel") and hasattr(value, "py_func")
}
assert len(kernels) > 20
print(sorted(name for name, value in kernels.items() if value not in compiled))
"""


def test_warm_up_leaves_no_op_and_no_kernel_out():
    assert run(COVERED) == "[]\n[]\n"


def test_warm_up_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"ops.*nonsense"):
        warm_up(ops=["nonsense"])
    with pytest.raises(ValueError, match=r"dtypes.*int8"):
        warm_up(dtypes=["int8"])
