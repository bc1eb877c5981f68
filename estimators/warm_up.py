"""Compile the CPU kernels ahead of their first use: a function, and the command of it.

python -m fused_elbo.warm_up --ops rsample_kl,elbo_loss
"""

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from . import (
    counts,
    discretized,
    distributions,
    functional,
    hierarchical,
    importance,
    likelihoods,
    loss,
    mixtures,
)
from .dispatch import choice, gaussian_calls, mixture_calls

ROWS, COLS, SAMPLES, MIXTURES = 4, 24, 3, 2
NORMALS = 64, 64  # as many as a kernel draws; torch draws fewer itself
LOG_STD: Any = "log_std", 0.0, 0.0
BATCH = 128  # components whose gradients are summed in parts


def calls_of(dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Small calls, by name, that lead through every op of the package."""

    def t(*shape):
        return torch.zeros(shape, dtype=dtype, device="cpu", requires_grad=True)

    numba: dict[str, Any] = {"impl": "numba"}
    mean: dict[str, Any] = {"impl": "numba", "reduction": "mean"}
    mu, logvar, prior_mu, prior_logvar, recon = (t(ROWS, COLS) for _ in range(5))
    q, prior = (mu, logvar), (prior_mu, prior_logvar)
    column, log_ratio, params = t(ROWS), t(SAMPLES, ROWS), t(ROWS, 10 * MIXTURES, 2, 2)
    x, pixels = t(ROWS, COLS).detach(), t(ROWS, 3, 2, 2).detach()
    classes = torch.zeros(ROWS, dtype=torch.int64, device="cpu")
    library = recon, x, recon, column  # of scVI's decoder
    batch = t(BATCH, COLS), t(BATCH, COLS), t(BATCH, COLS)
    return {
        "gaussian_log_prob": lambda: functional.gaussian_log_prob(recon, *q, **numba),
        "gaussian_kl": lambda: functional.gaussian_kl(*q, *prior, **numba),
        "gaussian_rsample": lambda: (
            functional.gaussian_rsample(*q, **numba),
            functional.gaussian_rsample(*q, SAMPLES, **numba),
        ),
        "rsample_kl": lambda: functional.rsample_kl(*q, **numba),
        "rsample_log_ratio": lambda: functional.rsample_log_ratio(*q, SAMPLES, **numba),
        "rsample_kl_log_std": lambda: hierarchical.rsample_kl_log_std(*q, *prior, **numba),
        "balanced_kl": lambda: hierarchical.balanced_kl(*q, *prior, **numba),
        "gaussian_nll": lambda: likelihoods.gaussian_nll(recon, x, **numba),
        "bernoulli_nll": lambda: likelihoods.bernoulli_nll(recon, x, **numba),
        "laplace_nll": lambda: likelihoods.laplace_nll(recon, x, **numba),
        "poisson_nll": lambda: likelihoods.poisson_nll(recon, x, **numba),
        "categorical_nll": lambda: likelihoods.categorical_nll(recon, classes, **numba),
        "negative_binomial_nll": lambda: counts.negative_binomial_nll(recon, x, recon, **numba),
        "softmax_negative_binomial_nll": lambda: (
            counts.softmax_negative_binomial_nll(*library, **numba),
            counts.softmax_negative_binomial_nll(*library, **mean),
        ),
        "multinomial_nll": lambda: counts.multinomial_nll(recon, x, **numba),
        "discretized_mix_logistic_nll": lambda: (
            discretized.discretized_mix_logistic_nll(params, pixels, MIXTURES, **numba),
            discretized.discretized_mix_logistic_nll(params, pixels, MIXTURES, **mean),
        ),
        "mixture_log_prob": lambda: mixtures.mixture_log_prob(recon, *q, **numba),
        "kl_decomposition": lambda: mixtures.kl_decomposition(*batch, 2 * BATCH, **numba),
        "importance_weights": lambda: (
            importance.importance_weights(log_ratio, **numba),
            importance.importance_weights(log_ratio, 0.5, **numba),
        ),
        "elbo_loss": lambda: loss.elbo_loss(recon, x, *q, **numba),
        "elbo_loss:gaussian": lambda: loss.elbo_loss(recon, x, *q, likelihood="gaussian", **numba),
        # Drop-ins alone call these: the package has no function for them.
        "aggregate_log_probs": lambda: mixture_calls.aggregate_log_probs(
            recon, *q, (None, None), **numba
        ),
        "posterior_kl": lambda: gaussian_calls.posterior_kl(*q, *prior, LOG_STD, **numba),
        # With impl="auto" a kernel draws the normals that torch would.
        "DiagonalNormal": lambda: distributions.DiagonalNormal(t(*NORMALS), t(*NORMALS)).rsample(),
    }


STEPS = tuple(calls_of(torch.float32))


def differentiate(results: Any) -> None:
    """Backward of all that has a gradient."""
    tensors = results if isinstance(results, tuple) else (results,)
    if isinstance(tensors[0], tuple):
        tensors = tuple(tensor for several in tensors for tensor in several)
    sum(t.sum() for t in tensors if t is not None and t.requires_grad).backward()


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
        steps = calls_of(DTYPES[dtype])
        for op in ops:
            if progress is not None:
                progress(f"{op} {dtype}")
            differentiate(steps[op]())
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
