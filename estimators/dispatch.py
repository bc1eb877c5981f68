"""Checked arguments in, kernels or their PyTorch twins out.

The one reader of ``impl``, and the one importer of kernels. ``shape`` is what the latent arguments
broadcast to, [..., D], or that of a likelihood's values, [B] or [K, B].
"""

import importlib.util
import math
import os
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ..kernels import ops
from . import noise, reference, textbook, validate

Implementation: TypeAlias = Literal["auto", "triton", "reference"]
IMPLEMENTATIONS = ("auto", "triton", "reference")
HAS_TRITON = importlib.util.find_spec("triton") is not None


def check(impl):
    validate.choice("impl", impl, IMPLEMENTATIONS)


def use_kernels(impl, tensor, *, fits=True):
    """Whether ``impl`` means the Triton kernels for this tensor.

    ``fits``: whether there is one for the other arguments.

    >>> use_kernels("auto", torch.zeros(2))
    False
    """
    check(impl)
    if impl == "reference" or (impl == "auto" and tensor.device.type != "cuda"):
        return False
    if not HAS_TRITON:
        if impl == "auto":
            return False
        raise RuntimeError("impl='triton' needs Triton, which is not installed: pip install triton")
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"impl='triton' needs CUDA tensors, got one on {tensor.device}: move the tensors to "
            "a GPU, or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
        )
    if impl == "triton" and not fits:
        raise RuntimeError(
            "impl='triton': no kernel serves these arguments, but those of one floating dtype and "
            "shape, reduced to a number, without weights (of probabilities, not in float16, under "
            "autocast or torch.compile); impl='auto' leaves the others to torch"
        )
    return fits


def where_it_fits(impl, fits):
    """For a term of a whole loss: there ``"triton"`` asks for kernels where there are any."""
    return "reference" if impl == "triton" and not fits else impl


def either(impl, other):
    """Of two that meet in one operation, the one that is no default."""
    return other if impl == "auto" else impl


def gaussian_log_prob(shape, x, mu, logvar, *, impl) -> Tensor:
    if not use_kernels(impl, x):
        return reference.gaussian_log_prob(x, mu, logvar)
    mu, x, logvar = rows(shape, mu, x, logvar)
    return view(ops.gaussian_nll(mu, x, logvar, 0.0, -1), shape[:-1])


def gaussian_kl(shape, mu, logvar, prior_mu, prior_logvar, *, impl) -> Tensor:
    if not use_kernels(impl, mu):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    kl = ops.gaussian_kl(*rows(shape, mu, logvar, *both(prior_mu, prior_logvar)))
    return view(kl, shape[:-1])


def gaussian_rsample(shape, mu, logvar, num_samples, *, generator, impl) -> Tensor:
    if not use_kernels(impl, mu):
        return reference.gaussian_rsample(mu, logvar, num_samples, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    z = ops.rsample(*rows(shape, mu, logvar), seed, num_samples or 1)
    return z.view(shape if num_samples is None else (num_samples, *shape))


def sampler(mu, samples, shape, *, impl):
    """A function of mu and logvar: z [samples..., D] of ``shape``, at one noise for all calls."""
    if use_kernels(impl, mu):
        seed = noise.draw_seed(mu.device)

        def draw(mu, logvar):
            q = (t.reshape(-1, t.shape[-1]) for t in (mu, logvar))
            return ops.rsample(*q, seed, samples).view(shape)

        return draw
    # Backward needs this noise in any case.
    (wide,) = reference.accumulate(mu)
    eps = reference.standard_normal(shape, wide)

    def draw(mu, logvar):
        wide_mu, wide_logvar = reference.accumulate(mu, logvar)
        return textbook.gaussian_sample(wide_mu, wide_logvar, eps).to(mu.dtype)

    return draw


def rsample_kl(shape, mu, logvar, prior_mu, prior_logvar, *, generator, impl):
    if not use_kernels(impl, mu):
        return reference.rsample_kl(mu, logvar, prior_mu, prior_logvar, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    z, kl = ops.rsample_kl(*rows(shape, mu, logvar, *both(prior_mu, prior_logvar)), seed)
    return view(z, shape), view(kl, shape[:-1])


def rsample_log_ratio(
    shape, mu, logvar, prior_mu, prior_logvar, num_samples, *, gradient, antithetic, generator,
    impl, flat=False, eps=None,
):  # fmt: skip
    """``eps()`` is the reference's noise [K, ..., D], by default its own.

    ``flat`` is for the prior p(z) = 1: the log ratio is -log q(z|x).
    """
    q = mu, logvar, prior_mu, prior_logvar
    if use_kernels(impl, mu):
        seed = noise.draw_seed(mu.device, generator)
        return _kernel_samples(shape, q, num_samples, seed, 0, gradient, flat, antithetic)
    if eps is not None:
        return reference.log_ratio_at(eps(), *q, gradient=gradient, flat=flat)
    options = {"gradient": gradient, "antithetic": antithetic, "generator": generator}
    return reference.rsample_log_ratio(mu, logvar, num_samples, prior_mu, prior_logvar, **options)


def samples_of_stream(
    shape, mu, logvar, prior_mu, prior_logvar, num_samples, *, seed, first_sample, gradient,
    antithetic, impl,
):  # fmt: skip
    """rsample_log_ratio for samples ``first_sample``, ... of the kernels' noise stream.

    The reference draws from the stream's twin: chunks of samples are those of one call.
    """
    q = mu, logvar, prior_mu, prior_logvar
    if use_kernels(impl, mu):
        options = gradient, False, antithetic
        return _kernel_samples(shape, q, num_samples, seed, first_sample, *options)
    sides = 1 + antithetic
    sizes = num_samples // sides, math.prod(shape[:-1]), shape[-1]
    eps = noise.stream(seed, *sizes, first_draw=first_sample // sides).view(-1, *shape)
    eps = reference.with_antithetic(eps) if antithetic else eps
    return reference.log_ratio_at(eps, *q, gradient=gradient)


def _kernel_samples(shape, q, num_samples, seed, first_sample, gradient, flat, antithetic):
    mu, logvar, *prior = q
    first_draw = first_sample // 2 if antithetic else first_sample
    options = seed, first_draw, num_samples, gradient, flat, antithetic
    z, log_ratio = ops.rsample_log_ratio(*rows(shape, mu, logvar, *both(*prior)), *options)
    return z.view(num_samples, *shape), log_ratio.view(num_samples, *shape[:-1])


def negative_log_likelihood(shape, recon, x, recon_logvar=0.0, *, likelihood, impl) -> Tensor:
    """-log p(x|z) of each example, or of every sample of it.

    ``"probabilities"`` are a Bernoulli's, and have kernels only.
    """
    if not use_kernels(impl, recon):
        twins = {"gaussian": reference.gaussian_nll, "bernoulli": reference.bernoulli_nll}
        options = (recon_logvar,) if likelihood == "gaussian" else ()
        return twins[likelihood](recon, x, *options)
    if likelihood == "gaussian":
        nll = ops.gaussian_nll(*likelihood_rows(recon, x, recon_logvar), 1)
    else:
        nll = ops.bernoulli_nll(*example_rows(recon, x), likelihood == "probabilities")
    return view(nll, shape)


def elbo_loss(shape, recon, x, recon_logvar, kl, *, likelihood, beta, reduction, impl):
    """(loss, nll, kl), reduced; a ``kl`` of None is no term of the loss."""
    if reduction != "none" and _gradient_in_forward(impl, recon):
        batch = x.shape[0]
        scale = 1.0 if reduction == "sum" else 1.0 / batch if batch else math.nan
        operands = likelihood_rows(recon, x, recon_logvar)
        return ops.elbo_loss(*operands, kl=kl, likelihood=likelihood, beta=float(beta), scale=scale)
    nll = negative_log_likelihood(shape, recon, x, recon_logvar, likelihood=likelihood, impl=impl)
    if nll.dim() > 1:
        nll = nll.flatten(0, -2).mean(0)
    loss = nll if kl is None else torch.add(nll, kl, alpha=beta)
    if reduction == "none":
        return loss, nll, kl
    return [p if p is None else getattr(p, reduction)() for p in (loss, nll, kl)]


def _gradient_in_forward(impl, recon):
    """Whether the likelihood's gradient can be had in the forward pass.

    Not in float16, whose range 1/B times a gradient may leave before the loss scale is in;
    nor under torch.compile, which fuses the factor's multiplication and the reduction itself.
    """
    if recon.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    return use_kernels(impl, recon)


def importance_weights(log_weights, alpha, *, impl):
    """(bound, weights, ess)."""
    if not use_kernels(impl, log_weights):
        return reference.importance_weights(log_weights, alpha)
    shape = log_weights.shape[1:]
    flat = view(log_weights, (len(log_weights), math.prod(shape)))
    bound, weights, ess, _ = ops.importance_weights(flat, None, float(alpha))
    return view(bound, shape), view(weights, log_weights.shape), view(ess, shape)


def importance_bound(log_ratio, nll, alpha, *, with_weights, impl):
    """(bound, weights, ess, log weights) of log_ratio - nll [K, B]; the bound has a gradient.

    Weights and ess may be None where nobody wants them.
    """
    if use_kernels(impl, nll):
        return ops.importance_weights(log_ratio, nll, float(alpha))
    log_weights = log_ratio - nll
    bound, weights, ess = reference.importance_bound(log_weights, alpha), None, None
    if with_weights:
        _, weights, ess = reference.importance_weights(log_weights.detach(), alpha)
    return bound, weights, ess, log_weights


def example_rows(recon, x):
    """What the likelihoods' ops take: recon [K B, events] and x [B, events]."""
    x = x.flatten(1)
    return view(recon, (math.prod(recon.shape) // x.shape[1], x.shape[1])), x


def likelihood_rows(recon, x, recon_logvar):
    """For the Gaussian likelihood those rows, and logvar as tensor or as float.

    A logvar that is constant over an example's events stays one number a row.
    """
    recon_rows, x_rows = example_rows(recon, x)
    if not isinstance(recon_logvar, Tensor):
        return recon_rows, x_rows, None, float(recon_logvar)
    aligned = recon_logvar[(None,) * (recon.dim() - recon_logvar.dim())]
    leading = recon.shape[: recon.dim() - x.dim() + 1]
    if all(size == 1 for size in aligned.shape[len(leading) :]):
        logvar = aligned.reshape(*aligned.shape[: len(leading)], 1).expand(*leading, 1)
        logvar = logvar.reshape(-1, 1)
    else:
        logvar = recon_logvar.expand(recon.shape).reshape(recon_rows.shape)
    return recon_rows, x_rows, logvar, 0.0


def rows(shape, *tensors):
    """Views (copies where strides allow none) of shape [rows, D] after broadcasting."""
    flat = (math.prod(shape[:-1]), shape[-1])
    wide = (t if t is None or t.shape == shape else t.expand(shape) for t in tensors)
    return [None if t is None else view(t, flat) for t in wide]


def view(tensor, shape):
    """The tensor in this shape, without a node in the graph where it has it."""
    return tensor if tensor.shape == shape else tensor.reshape(shape)


def both(prior_mu, prior_logvar):
    """A prior of which one half is given, with zeros for the other."""
    given = prior_mu if prior_mu is not None else prior_logvar
    if given is None:
        return None, None
    zero = given.new_zeros(())
    return zero if prior_mu is None else prior_mu, zero if prior_logvar is None else prior_logvar
