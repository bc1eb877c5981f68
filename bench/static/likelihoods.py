"""The kernels of likelihoods: forward, backward, and the forward pass that has the gradient too."""

import torch

from fused_elbo.kernels.triton.bernoulli_nll import launch_bernoulli_nll as bernoulli
from fused_elbo.kernels.triton.categorical_nll import launch_categorical_nll as categorical
from fused_elbo.kernels.triton.gaussian_nll import launch_gaussian_nll as gaussian
from fused_elbo.kernels.triton.laplace_nll import launch_laplace_nll as laplace
from fused_elbo.kernels.triton.multinomial_nll import launch_multinomial_nll as multinomial
from fused_elbo.kernels.triton.negative_binomial_nll import (
    launch_negative_binomial_nll as negative_binomial,
)
from fused_elbo.kernels.triton.poisson_nll import launch_poisson_nll as poisson
from fused_elbo.kernels.triton.softmax_negative_binomial_nll import (
    launch_softmax_negative_binomial_nll as softmax_negative_binomial,
)

from .operands import ROWS, SAMPLES, StaticCase

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + gradient"
ALL = (FORWARD, BACKWARD, BOTH)


def cases(t):
    recon, x, width = t.a, t.b, t.c
    samples, grad = t.full(SAMPLES).view(-1, t.cols), t.sums(SAMPLES * ROWS)
    fixed, learned = (recon, x, None, 0.0), (recon, x, width, 0.0)
    logits, probabilities = (recon, x, False), (recon, x, True)
    classes = torch.empty(ROWS, dtype=torch.int64)
    return [
        *passes("gaussian_nll", gaussian, (*fixed, 1), t.rows),
        *passes("gaussian_nll learned", gaussian, (*learned, 1), t.rows),
        *passes("gaussian_nll samples", gaussian, (samples, *fixed[1:], 1), grad, ALL[:2]),
        *passes("bernoulli_nll samples", bernoulli, (samples, x, False), grad, ALL[:2]),
        *passes("bernoulli_nll", bernoulli, logits, t.rows),
        *passes("bernoulli_nll probabilities", bernoulli, probabilities, t.rows, forward="total"),
        *passes("laplace_nll", laplace, fixed, t.rows),
        *passes("laplace_nll learned", laplace, learned, t.rows, ALL[2:]),
        *passes("poisson_nll", poisson, (recon, x), t.rows),
        # Four elements per thread, one in float64: 128-bit accesses in float32 alone.
        *passes(
            "negative_binomial_nll",
            negative_binomial,
            (recon, x, width, None, 0.0),
            t.rows,
            contract=t.dtype == torch.float32,
        ),
        *passes(
            "negative_binomial_nll inflated",
            negative_binomial,
            (recon, x, width, t.d, 0.0),
            t.rows,
            contract=t.dtype == torch.float32,
        ),
        # One dispersion per column has its gradients added up: no contract of bytes.
        *passes(
            "negative_binomial_nll by column",
            negative_binomial,
            (recon, x, t.empty(1, t.cols), None, 0.0),
            t.rows,
            contract=False,
        ),
        # The logits of a long row are read again, for the softmax and for the gradient.
        *passes(
            "softmax_negative_binomial_nll",
            softmax_negative_binomial,
            (recon, x, t.empty(1, t.cols), t.rows[:, None], t.d, 0.0),
            t.rows,
            contract=False,
        ),
        *passes("multinomial_nll", multinomial, (recon, x), t.rows, contract=False),
        # No contract of bytes: the int64 classes of two rows are a 128-bit access too.
        *passes("categorical_nll", categorical, (recon, classes), t.rows, contract=False),
    ]


def passes(name, launch, inputs, grad, which=ALL, *, contract=True, forward="rows"):
    """The passes of a likelihood, whose gradients are those of recon and of its parameters.

    Every tensor among ``inputs`` is read once, and every gradient is written once.
    """
    read = [isinstance(tensor, torch.Tensor) for tensor in inputs]
    needs = (True,)
    if launch in (negative_binomial, softmax_negative_binomial):
        needs = (True, *read[2:-1])
    elif sum(read) > 2:
        needs = (True, False, True)
    calls = {
        FORWARD: {"values": forward},
        BACKWARD: {"dnll": grad, "needs": needs},
        BOTH: {"needs": needs, "scale": 0.5, "values": "total"},
    }

    def case(which):
        written = sum(needs) if "needs" in calls[which] else 0
        operands = sum(read) + written if contract else None
        return StaticCase(f"{name} {which}", operands, lambda: launch(*inputs, **calls[which]))

    return [case(one) for one in which]
