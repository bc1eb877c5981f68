"""Standard normal noise [K, ..., D]: independent, antithetic, or quasi-Monte-Carlo."""

import torch
from torch import Generator, Tensor

from .dispatch import validate
from .reference import reference

SAMPLINGS = ("independent", "antithetic", "sobol")


def draw(
    num_samples: int,
    like: Tensor,
    *,
    sampling: str = "independent",
    generator: Generator | None = None,
) -> Tensor:
    """eps [K, ..., D], each N(0, I), in the dtype and on the device of ``like`` [..., D].

    ``"antithetic"`` gives pairs (eps, -eps), samples 2k and 2k + 1, and needs an even K: exact
    for the odd part of an integrand, and worse than nothing for a purely even one.
    ``"sobol"`` gives, for every example on its own, K points of a scrambled Sobol sequence
    through the normal quantile function: faster convergence for smooth integrands in few
    dimensions, but not the K independent samples that a score function's baseline or a sample
    variance assumes.
    One scramble serves a call, each example shifting it at random: the errors of nonlinear
    values such as IWAE's then go together over a batch.
    Owen, "Monte Carlo theory, methods and examples", 2013, chapters 8 and 17.

    >>> eps = draw(4, torch.zeros(3, 2), sampling="antithetic")
    >>> torch.equal(eps[::2], -eps[1::2])
    True
    """
    validate.choice("sampling", sampling, SAMPLINGS)
    num_samples = validate.count("num_samples", num_samples)
    if sampling == "independent":
        return reference.standard_normal((num_samples, *like.shape), like, generator)
    if antithetic(sampling, num_samples):
        half = reference.standard_normal((num_samples // 2, *like.shape), like, generator)
        return reference.with_antithetic(half)
    return _sobol(num_samples, like, generator)


def antithetic(sampling, num_samples):
    """Whether samples come in pairs; they then must."""
    if sampling == "antithetic" and num_samples % 2:
        raise ValueError(f"antithetic sampling needs an even num_samples, got {num_samples}")
    return sampling == "antithetic"


def _sobol(num_samples, like, generator):
    """One base sequence, and for every example its own random shift modulo 1."""
    dimension = like.shape[-1]
    if dimension > torch.quasirandom.SobolEngine.MAXDIM:
        raise ValueError(
            f"sobol sampling takes up to {torch.quasirandom.SobolEngine.MAXDIM} dimensions, "
            f"got {dimension}"
        )
    device = like.device
    seed = torch.randint(2**62, (), generator=generator, device=device).item()
    with torch.device("cpu"):  # torch's engine is on the default device
        engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
        points = engine.draw(num_samples, dtype=torch.float64)
    wide = torch.float64 if device.type in reference.WITH_FLOAT64 else torch.float32
    shift = torch.rand(like.shape, dtype=wide, device=device, generator=generator)
    shift = reference.in_float64(shift)
    shape = (num_samples, *(1,) * (like.dim() - 1), dimension)
    uniform = (points.to(shift.device).view(shape) + shift) % 1.0
    # Centred in its cell: 0 and 1 have infinite quantiles.
    tiny = torch.finfo(torch.float64).eps
    return torch.special.ndtri(uniform.clamp(tiny, 1 - tiny)).to(like)
