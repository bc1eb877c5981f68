"""Machine code on disk, so that a kernel is compiled once per machine and not once per process.

The cache is an optimisation. Whatever goes wrong with it is a miss: the kernel is compiled, and a
file that was no good is written anew.

Numba's own cache reads an index before the code, raises at the first damaged byte of either, and
neither reads nor replaces what lies in a folder that it may not write. Here a file holds one
kernel for one signature and one kind of processor, and begins with a digest of all it depends on.
"""

import functools
import hashlib
import logging
import os
import pickle
import sys
import uuid
import warnings
from pathlib import Path

import llvmlite
import numba
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

HERE = Path(__file__).parent
LOGGER = logging.getLogger("fused_elbo")
USED: set[Path] = set()  # folders from which code was read, or to which it was written


def stamp_of(folder):
    """A digest of the sources of the kernels, and of the modules that compile them."""
    versions = f"{numba.__version__} {llvmlite.__version__} {sys.version}"
    sources = sorted(folder.glob("*.py"))
    return hashlib.sha256(versions.encode() + b"".join(s.read_bytes() for s in sources)).digest()


STAMP = stamp_of(HERE)


def folders():
    """The folders of machine code: all are read, and the first that can be written is written.

    These are numba's choices: NUMBA_CACHE_DIR alone, if it is set; else beside the sources, and
    then, where nobody may write there, in the user's folder for caches. An image of a container
    or an installation of a cluster can thus bring its code to those who may not write.
    """
    own = "fused_elbo_" + hashlib.sha256(str(HERE).encode()).hexdigest()[:16]
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]  # set at import
        return [Path(numba.config.CACHE_DIR) / own]  # type: ignore[attr-defined]
    beside = HERE / "__pycache__"
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # there is no home
        return [beside]
    return [beside, Path(caches) / own]


class Cache:
    """The cache that numba's dispatcher asks before it compiles a kernel, and tells afterwards."""

    def __init__(self, function):
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"

    @property
    def cache_path(self):
        return str(folders()[0])

    def file_name(self, signature, codegen):
        types = getattr(signature, "args", signature)
        key = repr((types, codegen.magic_tuple(), sys.implementation.cache_tag))
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.nbc"

    def load_overload(self, signature, target):
        """The compiled kernel, or None."""
        try:
            target.refresh()
            name = self.file_name(signature, target.codegen())
            for folder in folders():
                payload = read(folder / name)
                if payload is not None:
                    USED.add(folder)
                    return CompileResult._rebuild(target, *pickle.loads(payload))
        except Exception as error:  # whatever happened, the kernel is compiled instead
            LOGGER.debug("%s is compiled anew: %r", self.name, error)
        announce()
        return None

    def save_overload(self, signature, result):
        try:
            name = self.file_name(signature, result.codegen)
            payload = dumps(result._reduce())
        except Exception as error:
            LOGGER.debug("%s is not kept: %r", self.name, error)
            return
        for folder in folders():
            try:
                write(folder / name, payload)
            except OSError as error:
                LOGGER.debug("%s is not kept in %s: %s", self.name, folder, error)
            else:
                USED.add(folder)
                return
        warn_of_no_folder()


COMMAND = "python -m fused_elbo.warm_up"


@functools.cache
def announce():
    """Announce the compilation once per process: in a log, and at a terminal or in a notebook."""
    message = (
        "compiling kernels for this CPU, some seconds each, once on this machine; "
        f"{COMMAND} compiles them ahead"
    )
    LOGGER.info(message)
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        print(f"fused_elbo: {message}", file=sys.stderr, flush=True)


@functools.cache
def warn_of_no_folder():
    places = ", ".join(map(str, folders()))
    warnings.warn(
        f"the compiled kernels of fused_elbo cannot be kept in {places}, and every process compiles"
        f" them again: set NUMBA_CACHE_DIR to a folder that can be written, and run {COMMAND} once",
        stacklevel=2,
    )


def digest_of(name, payload):
    return hashlib.sha256(STAMP + name.encode() + payload).digest()


def read(path):
    """The bytes that these sources wrote there under that name, or None."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:32], content[32:]
    return payload if digest == digest_of(path.name, payload) else None


def write(path, payload):
    """Write all or nothing, so that other processes may read or write the file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
    try:
        temporary.write_bytes(digest_of(path.name, payload) + payload)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
