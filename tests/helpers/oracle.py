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
from helpers.machine import KERNELS

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def gaussian_nll_parts(x, mu, logvar):
    return 0.5 * (x - mu) ** 2 * torch.exp(-logvar), 0.5 * logvar, torch.full_like(x, HALF_LOG_2PI)


def bernoulli_nll_parts(logits, x):
    return torch.clamp(logits, min=0) - x * logits, torch.log1p(torch.exp(-logits.abs()))


def laplace_nll_parts(recon, x, log_scale):
    scaled = (x - recon).abs() * torch.exp(-log_scale)
    return scaled, log_scale, torch.full_like(scaled, math.log(2))


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
    antithetic: bool = False

    def __repr__(self):
        return self.name

    def output_shape(self, output, shape):
        if self.reduced[output] is None:
            return (self.samples, *shape) if self.samples else tuple(shape)
        shape = tuple(shape[:-1]) if self.reduced[output] == "last" else tuple(shape[:1])
        return (self.samples, *shape) if self.samples else shape

    def reduce(self, output, terms):
        how = self.reduced[output]
        if how is None:
            return terms
        return terms.sum(-1) if how == "last" else terms.flatten(1 + (self.samples > 0)).sum(-1)


def _density(name, call, parts, eager, arguments, reduced, samples=0):
    return Op(
        name,
        arguments,
        lambda a, impl: (call(a, impl),),
        lambda a, noise: (parts(a),),
        lambda a, noise: (eager(a),),
        (reduced,),
        samples,
    )


def log_ratio_parts(eps, mu, logvar, prior_mu=None, prior_logvar=None, path=False):
    """log p(z) - log q(z) in parts; ``path``: without the score of q. For q close to the prior
    the parts are small: 0.5 (eps^2 - u^2) = -0.5 delta (delta + 2 eps), delta = u - eps."""
    m = 0.0 if prior_mu is None else prior_mu
    s = torch.zeros_like(logvar) if prior_logvar is None else prior_logvar
    s = s + 0 * eps  # one a sample: what is infinite is added up last
    std = torch.exp(0.5 * logvar)
    if not path:
        d = 0.5 * (logvar - s)
        growth = torch.where(d.abs() < 0.1, torch.expm1(d), torch.exp(d) - 1)
        distance = (mu - m) * torch.exp(-0.5 * s)
        delta, u = distance + growth * eps, distance + torch.exp(d) * eps
        near = delta.abs() < 0.5
        delta, u = torch.where(near, delta, 0.0), torch.where(near, 0.0, u)
        first = torch.where(near, -delta * eps, 0.5 * eps**2)
        return 0.5 * (logvar - s) + 0 * eps, first, -0.5 * delta**2 - 0.5 * u**2
    # z - mu with mu held, which is lost in the rounding of z where std is small; then eps.
    nothing = torch.where(mu.isfinite(), mu - mu.detach(), 0.0)
    held = (std * eps + nothing) * torch.exp(-0.5 * logvar.detach())
    held = torch.where(std > 0, held, eps)
    u = (mu + std * eps - m) * torch.exp(-0.5 * s)
    return 0.5 * held * held, -0.5 * u * u, 0.5 * (logvar.detach() - s) + 0 * eps


def _log_ratio(name, arguments, samples, gradient="total", antithetic=False):
    def call(a, impl):
        options = {"gradient": gradient, "antithetic": antithetic, "impl": impl}
        return fused_elbo.rsample_log_ratio(*a[:2], samples, *a[2:], **options)

    def parts(a, noise):
        z = (a[0] + 0 * noise, torch.exp(0.5 * a[1]) * noise)
        return z, log_ratio_parts(noise, *a, path=gradient == "path")

    def eager(a, noise):
        z = a[0] + torch.exp(0.5 * a[1]) * noise
        m, s = a[2:] if a[2:] else (torch.zeros_like(a[0]), torch.zeros_like(a[1]))
        mu, logvar = (t.detach() for t in a[:2]) if gradient == "path" else a[:2]
        log_q = -0.5 * ((z - mu) ** 2 * torch.exp(-logvar) + logvar)
        return z, -0.5 * ((z - m) ** 2 * torch.exp(-s) + s) - log_q

    return Op(name, arguments, call, parts, eager, (None, "last"), samples, antithetic)


def _gaussian_nll(name, arguments, parts_logvar, samples=0):
    """One of the forms of recon_logvar; ``parts_logvar`` finds it among the arguments."""

    def call(a, impl):
        logvar = a[2] if len(a) == 3 else parts_logvar(a)
        return fused_elbo.gaussian_nll(a[0], a[1], logvar, impl=impl)

    def parts(a):
        logvar = parts_logvar(a)
        logvar = torch.as_tensor(logvar, dtype=a[0].dtype, device=a[0].device)
        return gaussian_nll_parts(a[1].expand(a[0].shape), a[0], logvar.expand(a[0].shape))

    return _density(name, call, parts, lambda a: sum(parts(a)), arguments, "events", samples)


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
    _gaussian_nll("gaussian_nll_samples", ("recon_samples", "x"), lambda a: FIXED_LOGVAR, 3),
    _gaussian_nll(
        "gaussian_nll_element_samples",
        ("recon_samples", "x", "logvar_samples"),
        lambda a: a[2],
        3,
    ),
    _gaussian_nll(
        "gaussian_nll_row_samples",
        ("recon_samples", "x", "row_logvar"),
        lambda a: a[2],
        3,
    ),
    _density(
        "bernoulli_nll",
        lambda a, impl: fused_elbo.bernoulli_nll(*a, impl=impl),
        lambda a: bernoulli_nll_parts(*a),
        lambda a: eager_bernoulli_nll(*a),
        ("logits", "target"),
        "events",
    ),
    _density(
        "bernoulli_nll_samples",
        lambda a, impl: fused_elbo.bernoulli_nll(*a, impl=impl),
        lambda a: bernoulli_nll_parts(*a),
        lambda a: eager_bernoulli_nll(*a),
        ("logits_samples", "target"),
        "events",
        3,
    ),
    _density(
        "laplace_nll",
        lambda a, impl: fused_elbo.laplace_nll(*a, impl=impl),
        lambda a: laplace_nll_parts(*a),
        lambda a: sum(laplace_nll_parts(*a)),
        ("recon", "x", "logvar"),
        "events",
    ),
    _log_ratio("rsample_log_ratio", LATENT, 3),
    _log_ratio("rsample_log_ratio_prior", LATENT + PRIOR, 9),
    _log_ratio("rsample_log_ratio_path", LATENT + PRIOR, 3, "path"),
    _log_ratio("rsample_log_ratio_antithetic", LATENT, 4, antithetic=True),
]
OP = {op.name: op for op in OPS}


def argument_shape(argument, shape):
    """The shape of an argument where examples or latents have ``shape``."""
    if argument.endswith("_samples"):
        return (3, *shape)
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
    if argument.startswith("logits"):
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
    if "rsample" not in op.name:
        return None
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    torch.manual_seed(seed)
    draws = op.samples // 2 if op.antithetic else op.samples or None
    eps = fused_elbo.gaussian_rsample(zero, zero, draws, impl=KERNELS)
    return torch.stack((eps, -eps), 1).flatten(0, 1) if op.antithetic else eps
