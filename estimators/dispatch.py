"""Checked arguments in, kernels or their PyTorch twins out.

The one reader of ``impl``, and the one importer of kernels. ``shape`` is what the latent arguments
broadcast to, [..., D] or with ``event_dims`` for D, or that of a likelihood's values, [B] or
[K, B].
"""

import importlib.util
import math
import warnings
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ..kernels import library, ops
from . import events, noise, reference, textbook, twins, validate

Implementation: TypeAlias = Literal["auto", "triton", "numba", "reference"]
IMPLEMENTATIONS = ("auto", "triton", "numba", "reference")
HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None

# Elements of a likelihood below which torch's own loss is faster than a call of a kernel.
SMALL = {"gaussian": 2**19, "bernoulli": 2**16, "laplace": 2**16, "categorical": 2**18}
# The same where the scale is a tensor, for which torch has no loss, but several operations.
SMALL_LEARNED = {"laplace": 2**15}
# Classes below which torch's softmax packs no registers: 11 ns an element, and a kernel 2.
FEW_CLASSES = 16

# Normals below which torch.randn itself takes no longer than a kernel that draws the same.
FEW_NORMALS = 1024

TWINS: dict[Any, Any] = {
    ops.gaussian_nll.function: twins.gaussian_nll,
    ops.bernoulli_nll.function: twins.bernoulli_nll,
    ops.laplace_nll.function: twins.laplace_nll,
    ops.poisson_nll.function: twins.poisson_nll,
    ops.categorical_nll.function: twins.categorical_nll,
    ops.gaussian_kl.function: reference.gaussian_kl,
    ops.rsample.function: twins.rsample,
    ops.rsample_kl.function: twins.rsample_kl,
    ops.rsample_log_ratio.function: twins.rsample_log_ratio,
    ops.posterior_kl.function: reference.posterior_kl,
    ops.posterior_sample_kl.function: twins.posterior_sample_kl,
    ops.mixture_log_prob.function: reference.mixture_log_prob,
    ops.marginals_log_prob.function: reference.marginals_log_prob,
    ops.kl_decomposition.function: reference.kl_decomposition,
    ops.discretized_mix_logistic_nll.function: reference.discretized_mix_logistic_nll,
    ops.DiscretizedMixLogisticLoss: twins.discretized_mix_logistic_loss,
    ops.BalancedKL: reference.balanced_kl,
    ops.ImportanceWeights: twins.importance_weights,
    ops.ELBOLoss: twins.elbo_loss,
}
for function, twin in TWINS.items():
    function.twin = staticmethod(twin)


def check(impl):
    validate.choice("impl", impl, IMPLEMENTATIONS)


def use_kernels(impl, *tensors, fits=True):
    """Whether ``impl`` means the kernels for these tensors, of which some may be None.

    ``fits``: whether there is one for the other arguments.

    >>> use_kernels("reference", torch.zeros(2))
    False
    """
    if impl == "auto":
        return fits and (HAS_TRITON if tensors[0].is_cuda else served_on_cpu(tensors))
    check(impl)
    if impl == "reference":
        return False
    insist(impl, tensors[0].device)
    if not fits:
        raise RuntimeError(
            f"impl={impl!r}: no kernel serves these arguments, but those of one floating dtype and "
            "shape, reduced to a number, without weights (of probabilities, not in float16, under "
            "autocast or torch.compile); impl='auto' leaves the others to torch"
        )
    return True


def served_on_cpu(tensors):
    """Whether numba's kernels can do all that the reference can with these tensors.

    Not forward mode, torch.func, tensors without numbers or of a subclass; what compiles or traces
    has the reference, which it can look into.
    """
    served = HAS_NUMBA and not library.INTERPRETED and plain_on_cpu(tensors)
    return served and library.obstacle("numba") is None


def plain_on_cpu(tensors):
    """Whether these are numbers on a CPU that nobody but autograd watches."""
    return (
        tensors[0].is_cpu
        and not torch.compiler.is_compiling()
        and not library.forward_mode()
        and not library.watched(tensors)
    )


def insist(impl, device):
    """Raise where the kernels of ``impl`` cannot run."""
    if impl == "triton":
        if not HAS_TRITON:
            raise RuntimeError(
                "impl='triton' needs Triton, which is not installed: pip install triton"
            )
        if device.type != "cuda" and not library.INTERPRETED:
            raise RuntimeError(
                f"impl='triton' needs CUDA tensors, got one on {device}: move the tensors to a "
                "GPU, or set TRITON_INTERPRET=1 before Python starts to interpret the kernels"
            )
        return
    if not HAS_NUMBA:
        raise RuntimeError("impl='numba' needs numba, which is not installed: pip install numba")
    if device.type != "cpu" or library.INTERPRETED:
        raise RuntimeError(
            f"impl='numba' needs CPU tensors, and TRITON_INTERPRET=1 not set: got one on {device}"
        )
    obstacle = library.obstacle("numba")
    if obstacle is not None:
        raise RuntimeError(f"impl='numba': the kernels cannot be compiled here: {obstacle}")


def left_to_torch(impl, tensor, likelihood, learned=False):
    """Whether torch's own loss is the choice: on CPUs, up to so many elements.

    Its squared error and its cross-entropy of logits are one call each, at the speed of memory.
    ``learned``: the scale is a tensor.
    """
    if likelihood == "categorical" and tensor.shape[-1] < FEW_CLASSES:
        return False
    small = SMALL_LEARNED if learned else SMALL
    return impl == "auto" and tensor.is_cpu and tensor.numel() < small.get(likelihood, 0)


def is_numba(tensor):
    """Whether its kernels, if they run, are numba's: to look at a result makes nobody wait."""
    return library.backend(tensor) == "numba"


def noise_is_kept(mu, logvar):
    """Whether backward reads the noise of one sample: on a CPU to draw it again takes longer."""
    wanted = torch.is_grad_enabled() and (mu.requires_grad or logvar.requires_grad)
    return wanted and is_numba(mu)


def torch_normals(shape, like, generator=None, *, impl):
    """torch.randn's, which a CPU's kernel draws in a fifth of the time, the same to rounding."""
    few = math.prod(shape) < FEW_NORMALS
    if few or impl == "reference" or like.dtype != torch.float32 or not served_on_cpu((like,)):
        return reference.standard_normal(shape, like, generator)
    randn = library.launcher("numba", "mersenne_twister", "randn")
    return randn(shape, generator or torch.default_generator)


def where_it_fits(impl, fits):
    """For a term of a whole loss, where a name of kernels asks for them where there are any."""
    return impl if fits or impl == "auto" else "reference"


def either(impl, other):
    """Of two that meet in one operation, the one that is no default."""
    return other if impl == "auto" else impl


def gaussian_log_prob(shape, x, mu, logvar, *, event_dims=1, impl) -> Tensor:
    if event_dims != 1:
        flat, order, tensors = events.flatten(shape, event_dims, x, mu, logvar)
        log_prob = gaussian_log_prob(flat, *tensors, impl=impl)
        return events.summed(log_prob, shape, order, event_dims)
    if not use_kernels(impl, x, mu, logvar):
        return reference.gaussian_log_prob(x, mu, logvar)
    mu, x, logvar = rows(shape, mu, x, logvar)
    return view(ops.gaussian_nll(mu, x, logvar, 0.0, -1), shape[:-1])


def mixture_log_prob(shape, z, mu, logvar, log_weights, *, impl) -> Tensor:
    """``shape`` [K, D] is that of the components."""
    mu, logvar = mu.expand(shape), logvar.expand(shape)
    if log_weights is not None:
        (log_weights,) = reference.accumulate(log_weights)
        log_weights = torch.log_softmax(log_weights, 0)
    if not use_kernels(impl, z, mu, logvar, log_weights):
        return reference.mixture_log_prob(z, mu, logvar, log_weights)
    (flat,) = rows(z.shape, z)
    return view(ops.mixture_log_prob(flat, mu, logvar, log_weights, None), z.shape[:-1])


def aggregate_log_probs(z, mu, logvar, log_weights, *, impl):
    """(log q(z), sum_d log q(z_d)) of components [K, D], with weights for either."""
    if not use_kernels(impl, z, mu, logvar, *log_weights):
        return reference.aggregate_log_probs(z, mu, logvar, None, log_weights)
    joint, marginals = log_weights
    return (
        ops.mixture_log_prob(z, mu, logvar, joint, None),
        ops.marginals_log_prob(z, mu, logvar, marginals, None),
    )


def kl_decomposition(z, mu, logvar, all_mu=None, all_logvar=None, stratified_of=None, *, impl):
    """The three terms; components [K, D] that are None are q of these examples."""
    q = z, mu, logvar, all_mu, all_logvar
    if not use_kernels(impl, *q):
        return reference.kl_decomposition(*q, stratified_of)
    return ops.kl_decomposition(*q, stratified_of)


def gaussian_kl(shape, mu, logvar, prior_mu, prior_logvar, *, event_dims=1, impl) -> Tensor:
    if event_dims != 1:
        q = mu, logvar, prior_mu, prior_logvar
        flat, order, q = events.flatten(shape, event_dims, *q)
        kl = gaussian_kl(flat, *q, impl=impl)
        return events.summed(kl, shape, order, event_dims)
    if not use_kernels(impl, mu, logvar, prior_mu, prior_logvar):
        return reference.gaussian_kl(mu, logvar, prior_mu, prior_logvar)
    kl = ops.gaussian_kl(*rows(shape, mu, logvar, *both(prior_mu, prior_logvar)))
    return view(kl, shape[:-1])


def balanced_kl(shape, mu, logvar, prior_mu, prior_logvar, free_nats, *, impl):
    """(dyn, rep)."""
    # Under torch.compile what torch differentiates in one graph.
    fits = not torch.compiler.is_compiling()
    if not use_kernels(where_it_fits(impl, fits), mu, logvar, prior_mu, prior_logvar, fits=fits):
        return reference.balanced_kl(mu, logvar, prior_mu, prior_logvar, free_nats)
    mu, logvar, prior_mu, prior_logvar = rows(shape, mu, logvar, prior_mu, prior_logvar)
    dyn, rep = ops.balanced_kl(mu, logvar, prior_mu, prior_logvar, free_nats)
    return view(dyn, shape[:-1]), view(rep, shape[:-1])


def normal_kl(shape, q, p, form, *, impl):
    """The KL [...] of latents [..., D]; either a mean and a spread, ``p`` two None for N(0, I)."""
    if not use_kernels(impl, *q, *p):
        pairs = [reference.gaussian_of(mean, spread, form) for mean, spread in (q, p)]
        return reference.gaussian_kl(*pairs[0], *pairs[1])
    return view(ops.posterior_kl(*rows(shape, *q, *p), form, 0.0, 0.0, False), shape[:-1])


def posterior_kl(q, q_spread, prior, prior_spread, form, *, elementwise=False, impl):
    """The KL [B] of latents [B, C, ...], or of each of them; operands as the op has them."""
    operands = q, q_spread, prior, prior_spread
    if not use_kernels(impl, *operands):
        arguments: Any = (*operands, *form, elementwise)
        return reference.posterior_kl(*arguments)
    flat, back = latent_rows(latent_shape(q, q_spread), *operands)
    kl = ops.posterior_kl(*flat, *form, elementwise)
    return back(kl) if elementwise else of_examples(kl, len(q))


def posterior_sample_kl(q, q_spread, prior, prior_spread, form, *, eps=None, generator=None, impl):
    """(z, the KL [B]) at the noise ``eps``, which by default the kernel or the reference draws."""
    operands = q, q_spread, prior, prior_spread
    shape = latent_shape(q, q_spread)
    if not use_kernels(impl, *operands, eps):
        if eps is None:
            (wide,) = reference.accumulate(q)
            eps = reference.standard_normal(shape, wide, generator)
        return reference.posterior_sample_kl(*operands, eps, *form)
    flat, back = latent_rows(shape, *operands, eps)
    seed = noise.draw_seed(q.device, generator) if eps is None else None
    keep_noise = eps is None and noise_is_kept(q, q if q_spread is None else q_spread)
    z, kl = ops.posterior_sample_kl(*flat, seed, *form, keep_noise)
    return back(z), of_examples(kl, len(q))


def latent_shape(mean, spread):
    """That of the mean, which may be the first half of the channels."""
    if spread is not None:
        return mean.shape
    batch, channels, *places = mean.shape
    return torch.Size((batch, channels // 2, *places))


def latent_rows(shape, *latents):
    """Latents [B, C, ...] as rows, and a function that takes rows back to ``shape``.

    A row is an example; but where the first has its channels last in memory, a place of an image,
    so that nothing is copied. Of twice as many channels each half of a row has its own.
    """
    first = latents[0]
    by_place = first.dim() > 2 and not first.is_contiguous() and is_flat(first.movedim(1, -1))
    if not by_place:
        flat = (None if t is None else t.flatten(1) for t in latents)
        return flat, lambda values: view(values, shape)
    batch, channels, *places = shape
    rows = batch * math.prod(places)
    flat = (None if t is None else t.movedim(1, -1).reshape(rows, t.shape[1]) for t in latents)
    return flat, lambda values: values.view(batch, *places, channels).movedim(-1, 1)


def is_flat(tensor):
    """Whether [..., C] is a view of rows, of contiguous columns."""
    stride, size = tensor.stride(), tensor.shape
    inner = range(tensor.dim() - 2)
    return stride[-1] == 1 and all(stride[i] == stride[i + 1] * size[i + 1] for i in inner)


def of_examples(sums, batch):
    """[B] of the sums of an example's rows."""
    return sums if len(sums) == batch else sums.view(batch, -1).sum(1)


def gaussian_rsample(shape, mu, logvar, num_samples, *, generator, impl) -> Tensor:
    if not use_kernels(impl, mu, logvar):
        return reference.gaussian_rsample(mu, logvar, num_samples, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    keep_noise = num_samples is None and noise_is_kept(mu, logvar)
    z = ops.rsample(*rows(shape, mu, logvar), seed, num_samples, keep_noise)
    return view(z, shape if num_samples is None else (num_samples, *shape))


def sampler(mu, samples, shape, *, impl):
    """A function of mu and logvar: z [samples..., D] of ``shape``, at one noise for all calls."""
    # Of torch.distributions a CPU's samples are those of torch.randn, for the same seed.
    if use_kernels(impl, mu) and (impl != "auto" or mu.device.type != "cpu"):
        seed = noise.draw_seed(mu.device)

        def draw_again(mu, logvar):
            q = (t.reshape(-1, t.shape[-1]) for t in (mu, logvar))
            return ops.rsample(*q, seed, samples, False).view(shape)

        return draw_again
    # Backward needs this noise in any case.
    (wide,) = reference.accumulate(mu)
    eps = torch_normals(shape, wide, impl=impl)

    def draw(mu, logvar):
        wide_mu, wide_logvar = reference.accumulate(mu, logvar)
        return textbook.gaussian_sample(wide_mu, wide_logvar, eps).to(mu.dtype)

    return draw


def rsample_kl(shape, mu, logvar, prior_mu, prior_logvar, *, event_dims=1, generator, impl):
    if event_dims != 1:
        q = mu, logvar, prior_mu, prior_logvar
        flat, order, q = events.flatten(shape, event_dims, *q)
        z, kl = rsample_kl(flat, *q, generator=generator, impl=impl)
        return events.restore(z, shape, order), events.summed(kl, shape, order, event_dims)
    if not use_kernels(impl, mu, logvar, prior_mu, prior_logvar):
        return reference.rsample_kl(mu, logvar, prior_mu, prior_logvar, generator=generator)
    seed = noise.draw_seed(mu.device, generator)
    q = rows(shape, mu, logvar, *both(prior_mu, prior_logvar))
    z, kl = ops.rsample_kl(*q, seed, noise_is_kept(mu, logvar))
    return view(z, shape), view(kl, shape[:-1])


def rsample_log_ratio(
    shape, mu, logvar, prior_mu, prior_logvar, num_samples, *, event_dims=1, gradient, antithetic,
    generator, impl, flat=False, eps=None,
):  # fmt: skip
    """``eps()`` is the reference's noise [K, ..., D], by default its own.

    ``flat`` is for the prior p(z) = 1: the log ratio is -log q(z|x).
    """
    q = mu, logvar, prior_mu, prior_logvar
    if event_dims != 1:
        options = {"gradient": gradient, "antithetic": antithetic, "generator": generator}
        options |= {"num_samples": num_samples, "impl": impl}
        of_rows, order, q = events.flatten(shape, event_dims, *q)
        z, log_ratio = rsample_log_ratio(of_rows, *q, **options)
        log_ratio = events.summed(log_ratio, shape, order, event_dims, num_samples)
        return events.restore(z, shape, order, num_samples), log_ratio
    if use_kernels(impl, *q):
        seed = noise.draw_seed(mu.device, generator)
        return _kernel_samples(shape, q, num_samples, seed, 0, gradient, flat, antithetic)
    if eps is not None:
        return reference.log_ratio_at(eps(), *q, gradient=gradient, flat=flat)
    options = {"gradient": gradient, "antithetic": antithetic, "generator": generator, "flat": flat}
    return reference.rsample_log_ratio(mu, logvar, num_samples, prior_mu, prior_logvar, **options)


def rsample_log_ratio_to_mixture(shape, mu, logvar, mixture, num_samples, *, impl, **options):
    """The same for a prior (mu, logvar, log_weights) of components [K, D]."""
    z, minus_log_q = rsample_log_ratio(
        shape, mu, logvar, None, None, num_samples, impl=impl, flat=True, **options
    )
    return z, minus_log_q + log_prior(z, mixture, impl=impl)


def log_prior(z, mixture, *, impl):
    """log p(z): a function of z like the decoder's, whatever the gradient of q."""
    components = torch.broadcast_shapes(mixture.mu.shape, mixture.logvar.shape)
    return mixture_log_prob(components, z, *mixture, impl=impl)


def samples_of_stream(
    shape, mu, logvar, prior_mu, prior_logvar, num_samples, *, seed, first_sample, gradient,
    antithetic, impl, flat=False,
):  # fmt: skip
    """rsample_log_ratio for samples ``first_sample``, ... of the kernels' noise stream.

    The reference draws from the stream's twin: chunks of samples are those of one call.
    """
    q = mu, logvar, prior_mu, prior_logvar
    if use_kernels(impl, *q):
        options = gradient, flat, antithetic
        return _kernel_samples(shape, q, num_samples, seed, first_sample, *options)
    sides = 1 + antithetic
    sizes = num_samples // sides, math.prod(shape[:-1]), shape[-1]
    eps = noise.stream(seed, *sizes, first_draw=first_sample // sides).view(sizes[0], *shape)
    eps = reference.with_antithetic(eps) if antithetic else eps
    return reference.log_ratio_at(eps, *q, gradient=gradient, flat=flat)


def _kernel_samples(shape, q, num_samples, seed, first_sample, gradient, flat, antithetic):
    mu, logvar, *prior = q
    first_draw = first_sample // 2 if antithetic else first_sample
    options = seed, first_draw, num_samples, gradient, flat, antithetic
    z, log_ratio = ops.rsample_log_ratio(*rows(shape, mu, logvar, *both(*prior)), *options)
    return z.view(num_samples, *shape), log_ratio.view(num_samples, *shape[:-1])


def negative_log_likelihood(shape, recon, x, width=0.0, *, likelihood, impl) -> Tensor:
    """-log p(x|z) of each example, or of every sample of it.

    ``width`` is a Gaussian's log variance or a Laplace's log scale. ``"probabilities"`` are a
    Bernoulli's, and have kernels only.
    """
    x = data(x, recon, likelihood)
    given = tensor_or_none(width)
    fits = not left_to_torch(impl, recon, likelihood, given is not None)
    if not use_kernels(impl, recon, x, given, fits=fits):
        options = (width,) if likelihood in validate.WIDTHS else ()
        if likelihood == "categorical":
            options = (all_known(x, recon),)
        return getattr(reference, f"{likelihood}_nll")(recon, x, *options)
    recon, x, *rest = likelihood_rows(recon, x, width, likelihood)
    op, options = ops.likelihood_op(likelihood, *rest)
    nll = op(recon, x, *options)
    if nll.numel() != math.prod(shape):  # one number for each event
        nll = nll.view(math.prod(shape), -1).sum(-1)
    return view(nll, shape)


def warn_of_data(likelihood, nll):
    """Warn where a Bernoulli's x cannot be in [0, 1], as far as a look makes nobody wait.

    A look at the result costs less than one at x, and sees every x whose loss falls below zero.
    """
    if likelihood != "bernoulli" or nll.numel() == 0 or not plain_on_cpu((nll,)):
        return
    least = (nll if nll.dim() == 0 else nll.detach().amin()).item()
    if least < 0:
        warnings.warn(
            f"a Bernoulli has a negative log-likelihood of {least:.6g} nats here, which only data "
            "outside [0, 1] can have: scale x, as by x / 255 for grey values of 0 to 255",
            stacklevel=3,
        )


def discretized_mix_logistic_nll(params, x, half_bin, right_edge, guard, *, scale=None, impl):
    """Of each pixel [B, P]; or their sum times ``scale``, with the gradient in the forward pass.

    Not in float16 and not under torch.compile, as ``_gradient_in_forward`` says.
    """
    bins = half_bin, right_edge, guard
    params, x = params.flatten(2), x.flatten(2)
    kernels = use_kernels(impl, params, x)
    in_forward = params.dtype != torch.float16 and not torch.compiler.is_compiling()
    if kernels and scale is not None and in_forward:
        return ops.discretized_mix_logistic_loss(params, x, *bins, scale)
    function = ops if kernels else reference
    nll = function.discretized_mix_logistic_nll(params, x, *bins)
    return nll if scale is None else nll.sum() * scale


def elbo_loss(shape, recon, x, width, kl, *, likelihood, beta, reduction, impl):
    """(loss, nll, kl), reduced; a ``kl`` of None is no term of the loss."""
    tensors = recon, x, tensor_or_none(width), kl, tensor_or_none(beta)
    if reduction != "none" and _gradient_in_forward(impl, *tensors):
        batch = x.shape[0]
        scale = 1.0 if reduction == "sum" else 1.0 / batch if batch else math.nan
        operands = likelihood_rows(recon, data(x, recon, likelihood), width, likelihood)
        options = {"likelihood": likelihood, "scale": scale}
        if not isinstance(beta, Tensor):
            return ops.elbo_loss(*operands, kl=kl, beta=float(beta), **options)
        nll, *_ = ops.elbo_loss(*operands, kl=None, beta=1.0, **options)
        kl = getattr(kl.to(nll.dtype), reduction)()
        return weighted_loss(nll, kl, beta), nll, kl
    nll = negative_log_likelihood(shape, recon, x, width, likelihood=likelihood, impl=impl)
    if nll.dim() > 1:
        nll = nll.flatten(0, -2).mean(0)
    if kl is not None and kl.dtype != nll.dtype:
        nll, kl = reference.accumulate(nll, kl)
    loss = nll if kl is None else weighted_loss(nll, kl, beta)
    if reduction == "none":
        return loss, nll, kl
    return [p if p is None else getattr(p, reduction)() for p in (loss, nll, kl)]


def weighted_loss(nll, kl, beta):
    """nll + beta kl, in their dtype."""
    if isinstance(beta, Tensor):
        return nll + beta.to(nll.dtype) * kl
    if torch.compiler.is_compiling():  # for every alpha it would compile anew
        return nll + beta * kl
    return torch.add(nll, kl, alpha=beta)


def _gradient_in_forward(impl, recon, x, sigma, kl, beta):
    """Whether the likelihood's gradient can be had in the forward pass.

    Not in float16, whose range 1/B times a gradient may leave before the loss scale is in; nor
    where the KL is in float64 and the likelihood's sum is not; nor under torch.compile, which fuses
    the factor's multiplication and the reduction itself.
    """
    if recon.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    if kl is not None and kl.dtype == torch.float64 and not accumulates_in_float64(recon, x, sigma):
        return False
    return use_kernels(impl, recon, x, sigma, kl, beta)


def importance_weights(log_weights, alpha, *, impl):
    """(bound, weights, ess)."""
    if not use_kernels(impl, log_weights) or ordered_by_compiler(alpha):
        return reference.importance_weights(log_weights, alpha)
    shape = log_weights.shape[1:]
    flat = view(log_weights, (len(log_weights), math.prod(shape)))
    bound, weights, ess, _ = ops.importance_weights(flat, None, float(alpha))
    return view(bound, shape), view(weights, log_weights.shape), view(ess, shape)


def ordered_by_compiler(alpha):
    """Whether torch.compile sees an order other than IWAE's.

    An op's argument is a constant to it: for every order it would compile anew.
    """
    return torch.compiler.is_compiling() and alpha != 0


def importance_bound(log_ratio, nll, alpha, *, with_weights, impl):
    """(bound, weights, ess, log weights) of log_ratio - nll [K, B]; the bound has a gradient.

    Weights and ess may be None where nobody wants them.
    """
    if use_kernels(impl, nll, log_ratio) and not ordered_by_compiler(alpha):
        return ops.importance_weights(log_ratio, nll, float(alpha))
    log_weights = log_ratio - nll
    bound, weights, ess = reference.importance_bound(log_weights, alpha), None, None
    if with_weights:
        _, weights, ess = reference.importance_weights(log_weights.detach(), alpha)
    return bound, weights, ess, log_weights


def all_known(target, logits):
    """Whether no class is outside [0, C), as far as to look makes nobody wait.

    Of 64 examples the look takes 1.5 us; without it torch masks classes and values, for 15 more.
    """
    if target.numel() == 0 or not plain_on_cpu((logits, target)):
        return False
    least, greatest = target.aminmax()
    return least.item() >= 0 and greatest.item() < logits.shape[-1]


def data(x, recon, likelihood):
    """What the likelihood's op takes for x: classes are int64."""
    return x.long() if likelihood == "categorical" else floating(x, recon)


def floating(x, like):
    """Integer data, in the dtype of the sums beside ``like``."""
    if x.is_floating_point():
        return x
    return x.to(torch.float64 if accumulates_in_float64(like) else torch.float32)


def accumulates_in_float64(*tensors):
    return any(t is not None and t.dtype == torch.float64 for t in tensors)


def tensor_or_none(value):
    return value if isinstance(value, Tensor) else None


def example_rows(recon, x):
    """What the likelihoods' ops take: recon [K B, events] and x [B, events]."""
    if recon.dim() == x.dim() == 2 and recon.shape == x.shape:
        return recon, x
    x = x.flatten(1)
    return view(recon, (math.prod(recon.shape) // x.shape[1], x.shape[1])), x


def likelihood_rows(recon, x, width, likelihood):
    """Those rows, and the width as tensor and as float.

    A width that is constant over an example's events stays one number a row. Of a categorical
    likelihood each event is a row.
    """
    if likelihood == "categorical":
        return recon.reshape(-1, recon.shape[-1]), x.reshape(-1), None, 0.0
    recon_rows, x_rows = example_rows(recon, x)
    if tensor_or_none(width) is None:
        if not torch.compiler.is_compiling() or width == 0:
            return recon_rows, x_rows, None, float(width)
        # An op's argument is a constant to the compiler: for every value it would compile anew.
        width = reference.scalar(width, recon)
    if width.dim() == recon.dim() and width.shape == recon.shape:
        return recon_rows, x_rows, view(width, recon_rows.shape), 0.0
    aligned = width[(None,) * (recon.dim() - width.dim())]
    leading = recon.shape[: recon.dim() - x.dim() + 1]
    if all(size == 1 for size in aligned.shape[len(leading) :]):
        width = aligned.reshape(*aligned.shape[: len(leading)], 1).expand(*leading, 1)
        width = width.reshape(-1, 1)
    else:
        width = width.expand(recon.shape).reshape(recon_rows.shape)
    return recon_rows, x_rows, width, 0.0


def rows(shape, *tensors):
    """Views (copies where strides allow none) of shape [rows, D] after broadcasting."""
    for tensor in tensors:
        # Lengths first: as in validate.broadcast.
        if tensor is not None and (tensor.dim() != len(shape) or tensor.shape != shape):
            break
    else:
        if len(shape) == 2:
            return tensors
    flat = (math.prod(shape[:-1]), shape[-1])
    wide = (
        t if t is None or (t.dim() == len(shape) and t.shape == shape) else t.expand(shape)
        for t in tensors
    )
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
