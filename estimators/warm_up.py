"""Compile the CPU kernels ahead of their first use: a function, and the command of it.

python -m fused_elbo.warm_up --ops rsample_kl,elbo_loss
"""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from . import functional, likelihoods, loss, mixtures
from .dispatch import choice

ROWS, COLS, SAMPLES = 4, 24, 3


def latents(dtype, count):
    return [torch.zeros(ROWS, COLS, dtype=dtype, requires_grad=True) for _ in range(count)]


def backward(*results):
    sum(result.sum() for result in results).backward()


def loss_of(likelihood):
    """A training step's loss, of a likelihood."""

    def step(dtype):
        recon, mu, logvar = latents(dtype, 3)
        x = torch.zeros(ROWS, COLS, dtype=dtype)
        backward(loss.elbo_loss(recon, x, mu, logvar, likelihood=likelihood, impl="numba"))

    return step


def differentiated(function, count):
    """A function of so many tensors [B, D], forward and backward."""

    def step(dtype):
        results = function(*latents(dtype, count), impl="numba")
        backward(*(results if isinstance(results, tuple) else (results,)))

    return step


def sampled_log_ratio(mu, logvar, *, impl):
    return functional.rsample_log_ratio(mu, logvar, SAMPLES, impl=impl)


STEPS: dict[str, Callable[[torch.dtype], None]] = {
    "gaussian_kl": differentiated(functional.gaussian_kl, 2),
    "rsample_kl": differentiated(functional.rsample_kl, 2),
    "gaussian_rsample": differentiated(functional.gaussian_rsample, 2),
    "gaussian_log_prob": differentiated(functional.gaussian_log_prob, 3),
    "rsample_log_ratio": differentiated(sampled_log_ratio, 2),
    "mixture_log_prob": differentiated(mixtures.mixture_log_prob, 3),
    "bernoulli_nll": differentiated(likelihoods.bernoulli_nll, 2),
    "gaussian_nll": differentiated(likelihoods.gaussian_nll, 2),
    "elbo_loss": loss_of("bernoulli"),
    "elbo_loss:gaussian": loss_of("gaussian"),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class WarmUp(NamedTuple):
    """The result of ``warm_up``."""

    kernels: int
    seconds: float
    folders: list[Any]


def warm_up(
    ops: Iterable[str] | None = None,
    dtypes: Iterable[str] = ("float32",),
    progress: Callable[[str], None] | None = None,
) -> WarmUp:
    """Compile the CPU kernels of some functions, and keep the machine code on disk.

    A kernel is compiled at its first use, which takes some seconds, once on a machine. Here that
    happens ahead of it: while an image of a container is built, or before a cluster starts a
    hundred processes. Equivalent to a first call of each function with small tensors.

    Args:
        ops: names of functions of the package, those of ``STEPS``; by default all of them.
        dtypes: "float32", "float64" or both. float16 and bfloat16 share the code of float32.
        progress: called with the name of each function and dtype before it is compiled.

    Returns:
        ``(kernels, seconds, folders)``: how many kernels this process now has, how long it took,
        and where their machine code lies; no folder where none could be written.

    Raises:
        ValueError: a name in ``ops`` or ``dtypes`` is unknown.
        RuntimeError: numba is not installed, or cannot compile in this process.

    Example:
        >>> from fused_elbo.warm_up import warm_up
        >>> warm_up(ops=[]).kernels >= 0
        True
    """
    ops, dtypes = list(STEPS if ops is None else ops), list(dtypes)
    for name, given, allowed in (("ops", ops, STEPS), ("dtypes", dtypes, DTYPES)):
        unknown = [value for value in given if value not in allowed]
        if unknown:
            raise ValueError(f"{name}: {unknown} not among {list(allowed)}")
    start = time.perf_counter()
    state = torch.get_rng_state()
    for dtype in dtypes:
        for op in ops:
            if progress is not None:
                progress(f"{op} {dtype}")
            STEPS[op](DTYPES[dtype])
    torch.set_rng_state(state)
    kernels, folders = choice.compiled_for_cpu()
    return WarmUp(kernels, time.perf_counter() - start, folders)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_elbo.warm_up", description="Compile fused_elbo's CPU kernels ahead."
    )
    parser.add_argument("--ops", help=f"of {','.join(STEPS)}, with commas; by default all")
    parser.add_argument("--dtype", default="float32", help="float32, float64, or float32,float64")
    options = parser.parse_args(arguments)

    def progress(name):
        print(f"{name} ...", flush=True)

    ops = None if options.ops is None else options.ops.split(",")
    try:
        done = warm_up(ops, options.dtype.split(","), progress)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    where = ", ".join(map(str, done.folders)) or "no folder: none can be written"
    print(f"{done.kernels} kernels in {done.seconds:.0f} s, kept in {where}")
