"""The right answers, written for the tests alone and from the textbook alone.

Every formula returns its *parts*, elementwise: the value is their sum over the parts and
over the dimensions that the operation reduces. The parts are chosen so that no two large
ones cancel; the sum of their magnitudes is what float arithmetic's error is relative to.
In float64 on upcast inputs, through torch autograd, they are the oracle. ``eager_*`` is what
people write in their own VAE, and sets the error that the kernels are allowed twice of.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

import fused_elbo

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def gaussian_nll_parts(x, mu, logvar):
    return 0.5 * (x - mu) ** 2 * torch.exp(-logvar), 0.5 * logvar, torch.full_like(x, HALF_LOG_2PI)


def bernoulli_nll_parts(logits, x):
    return torch.clamp(logits, min=0) - x * logits, torch.log1p(torch.exp(-logits.abs()))


def kl_parts(mu, logvar, prior_mu=None, prior_logvar=None):
    m = 0.0 if prior_mu is None else prior_mu
    s = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    d = logvar - s
    return 0.5 * (mu - m) ** 2 * torch.exp(-s), 0.5 * expm1_minus(d)


def expm1_minus(d):
    """exp(d) - 1 - d: for a small d from its series, since expm1(d) - d cancels in turn."""
    near = d.abs() < 0.1
    small = torch.where(near, d, 0.0)  # keeps inf, and its NaN gradient, out of the series
    series = sum(small**n / math.factorial(n) for n in range(2, 14))
    return torch.where(near, series, torch.expm1(d) - d)


def eager_bernoulli_nll(logits, x):
    return F.softplus(logits) - x * logits


def eager_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    m = torch.zeros_like(mu) if prior_mu is None else prior_mu
    s = torch.zeros_like(mu) if prior_logvar is None else prior_logvar
    return -0.5 * (1 + logvar - s - ((mu - m) ** 2 + logvar.exp()) / s.exp())


class Op(NamedTuple):
    """A public operation in one form, with its oracle.

    ``call(args, impl)`` gives a tuple of outputs. ``parts(args, noise)`` and
    ``eager(args, noise)`` give, for each output, elementwise parts and elementwise terms;
    ``reduced`` says over which dimensions each output sums them.
    """

    name: str
    arguments: tuple
    call: Callable
    parts: Callable
    eager: Callable
    reduced: tuple
    samples: int = 0

    def __repr__(self):
        return self.name

    def reduce(self, output, terms):
        how = self.reduced[output]
        if how is None:
            return terms
        return terms.sum(-1) if how == "last" else terms.flatten(1).sum(1)


def _density(name, call, parts, eager, arguments, reduced):
    return Op(
        name,
        arguments,
        lambda a, impl: (call(a, impl),),
        lambda a, noise: (parts(a),),
        lambda a, noise: (eager(a),),
        (reduced,),
    )


def _gaussian_nll(name, arguments, parts_logvar):
    """One of the forms of recon_logvar; ``parts_logvar`` finds it among the arguments."""

    def call(a, impl):
        logvar = a[2] if len(a) == 3 else parts_logvar(a)
        return fused_elbo.gaussian_nll(a[0], a[1], logvar, impl=impl)

    def parts(a):
        logvar = parts_logvar(a)
        logvar = torch.as_tensor(logvar, dtype=a[0].dtype, device=a[0].device)
        return gaussian_nll_parts(a[1], a[0], logvar.expand(a[0].shape))

    return _density(name, call, parts, lambda a: sum(parts(a)), arguments, "events")


def _sampling(name, arguments, call, samples=0, kl=False):
    def parts(a, noise):
        z = (a[0] + 0 * noise, torch.exp(0.5 * a[1]) * noise)
        return (z, kl_parts(*a)) if kl else (z,)

    def eager(a, noise):
        z = a[0] + torch.exp(0.5 * a[1]) * noise
        return (z, eager_kl(*a)) if kl else (z,)

    return Op(name, arguments, call, parts, eager, (None, "last")[: 1 + kl], samples)


LATENT = ("mu", "logvar")
PRIOR = ("prior_mu", "prior_logvar")
FIXED_LOGVAR = -0.7  # the float in the form of recon_logvar that is one

OPS = [
    _density(
        "gaussian_log_prob",
        lambda a, impl: fused_elbo.gaussian_log_prob(*a, impl=impl),
        lambda a: tuple(-part for part in gaussian_nll_parts(*a)),
        lambda a: -sum(gaussian_nll_parts(*a)),
        ("x", "mu", "logvar"),
        "last",
    ),
    *(
        _density(
            name,
            lambda a, impl: fused_elbo.gaussian_kl(*a, impl=impl),
            lambda a: kl_parts(*a),
            lambda a: eager_kl(*a),
            arguments,
            "last",
        )
        for name, arguments in (("gaussian_kl", LATENT), ("gaussian_kl_prior", LATENT + PRIOR))
    ),
    _sampling(
        "gaussian_rsample",
        LATENT,
        lambda a, impl: (fused_elbo.gaussian_rsample(*a, impl=impl),),
    ),
    _sampling(
        "gaussian_rsample_k",
        LATENT,
        lambda a, impl: (fused_elbo.gaussian_rsample(*a, 3, impl=impl),),
        samples=3,
    ),
    *(
        _sampling(name, arguments, lambda a, impl: fused_elbo.rsample_kl(*a, impl=impl), kl=True)
        for name, arguments in (("rsample_kl", LATENT), ("rsample_kl_prior", LATENT + PRIOR))
    ),
    _gaussian_nll("gaussian_nll_float", ("recon", "x"), lambda a: FIXED_LOGVAR),
    _gaussian_nll("gaussian_nll_scalar", ("recon", "x", "scalar_logvar"), lambda a: a[2]),
    _gaussian_nll("gaussian_nll_row", ("recon", "x", "row_logvar"), lambda a: a[2]),
    _gaussian_nll("gaussian_nll_channel", ("recon", "x", "channel_logvar"), lambda a: a[2]),
    _gaussian_nll("gaussian_nll_element", ("recon", "x", "logvar"), lambda a: a[2]),
    _density(
        "bernoulli_nll",
        lambda a, impl: fused_elbo.bernoulli_nll(*a, impl=impl),
        lambda a: bernoulli_nll_parts(*a),
        lambda a: eager_bernoulli_nll(*a),
        ("logits", "target"),
        "events",
    ),
]
OP = {op.name: op for op in OPS}


def argument_shape(argument, shape):
    """The shape of an argument where examples or latents have ``shape``."""
    if argument == "scalar_logvar":
        return ()
    if argument == "row_logvar":
        return (shape[0],) + (1,) * (len(shape) - 1)
    if argument == "channel_logvar":
        return (shape[1],) + (1,) * (len(shape) - 2)
    return tuple(shape)


def random_values(argument, shape, generator=None):
    """Float64 values of the size that a VAE has, for one argument."""
    shape = argument_shape(argument, shape)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator)
    if argument == "logits":
        return 3 * normal
    if argument == "target":
        return (normal > 0).double() * torch.rand(shape, dtype=torch.float64, generator=generator)
    return 0.7 * normal if "logvar" in argument else normal


def upstream(shape, generator=None):
    """Upstream gradients that every dtype holds exactly, none zero."""
    sign = 2.0 * torch.randint(2, shape, generator=generator) - 1
    return sign * torch.randint(1, 12, shape, generator=generator).double() / 8


def noise_of(op, shape, seed, device):
    """The float32 noise that ``op`` draws after torch.manual_seed(seed), as float64."""
    if "sample" not in op.name:
        return None
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    torch.manual_seed(seed)
    return fused_elbo.gaussian_rsample(zero, zero, op.samples or None, impl="triton")
