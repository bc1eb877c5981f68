"""The fused operations in plain PyTorch: same names, contracts and shapes.

They add to the textbook only what the contracts ask: sums are accumulated in float32, or
in float64 for float64 inputs, samples come in the dtype of mu, and likelihoods sum over
everything but the first dimension. The noise is torch's own: ``noise.stream`` is the
kernels' noise, which costs more.
"""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ...kernels.torch_state import surely_transforming
from . import textbook

# Elements of a comparison of every row with every component that are held at a time.
COMPARED = 2**22


def accumulate(*tensors):
    """The tensors in the dtype that sums are accumulated in; None stays None."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            dtype = torch.float64
    return [t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors]


# Devices with float64. Others may have none, as Apple's MPS has none.
WITH_FLOAT64 = ("cpu", "cuda", "meta")


def in_float64(tensor):
    """The tensor in float64: where it is, or on the CPU."""
    return (tensor if tensor.device.type in WITH_FLOAT64 else tensor.cpu()).double()


def scalar(number, like):
    """The number as a tensor beside ``like``, in the dtype of its sums.

    torch.compile makes a constant of what is filled in, but not of what is added.
    """
    (zero,) = accumulate(like.new_zeros(()))
    return zero + number


def standard_normal(shape, like, generator=None):
    """eps ~ N(0, I) in the dtype and on the device of ``like``."""
    # Symbolic shapes, of torch.compile and torch.export, go with no generator, not even None.
    options = {} if generator is None else {"generator": generator}
    return torch.randn(shape, dtype=like.dtype, device=like.device, **options)


def gaussian_log_prob(x, mu, logvar):
    """Reference for :func:`fused_elbo.gaussian_log_prob`."""
    return textbook.gaussian_log_prob(*accumulate(x, mu, logvar))


def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    """Reference for :func:`fused_elbo.gaussian_kl`."""
    mu, logvar = torch.broadcast_tensors(mu, logvar)
    return textbook.gaussian_kl(*accumulate(mu, logvar, prior_mu, prior_logvar))


def gaussian_rsample(mu, logvar, num_samples=None, *, generator=None):
    """Reference for :func:`fused_elbo.gaussian_rsample`."""
    dtype = mu.dtype
    mu, logvar = torch.broadcast_tensors(*accumulate(mu, logvar))
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    eps = standard_normal(shape, mu, generator)
    return textbook.gaussian_sample(mu, logvar, eps).to(dtype)


def balanced_kl(mu, logvar, prior_mu, prior_logvar, free_nats):
    """Reference for :func:`fused_elbo.balanced_kl`: the KL twice, each with one side constant."""
    dyn = gaussian_kl(mu.detach(), logvar.detach(), prior_mu, prior_logvar)
    rep = gaussian_kl(mu, logvar, prior_mu.detach(), prior_logvar.detach())
    return dyn.clamp_min(free_nats), rep.clamp_min(free_nats)


def rsample_kl(mu, logvar, prior_mu=None, prior_logvar=None, *, generator=None):
    """Reference for :func:`fused_elbo.rsample_kl`."""
    z = gaussian_rsample(mu, logvar, generator=generator)
    return z, gaussian_kl(mu, logvar, prior_mu, prior_logvar)


def gaussian_of(mean, spread, form, soft_clamp=0.0, std_offset=0.0):
    """(mu, logvar) of what a network puts out, in the dtype of sums; halves of ``mean`` alone."""
    if mean is None:
        return None, None
    mean, spread = accumulate(mean, spread)
    if spread is None:
        mean, spread = mean.chunk(2, 1)
    if form == "clamped_logvar":
        return mean, spread.clamp(-30.0, 20.0)
    if form in ("std", "variance"):
        return mean, (2.0 if form == "std" else 1.0) * torch.log(spread)
    if soft_clamp:
        mean, spread = (soft_clamp * torch.tanh(t / soft_clamp) for t in (mean, spread))
    if std_offset:
        spread = torch.log(torch.exp(spread) + std_offset)
    return mean, 2 * spread


def posterior_kl(q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise):
    """The KL of latents [B, ...] to the prior, or to the standard one: [B], or of each latent."""
    options = form, soft_clamp, std_offset
    q, p = gaussian_of(q, q_spread, *options), gaussian_of(prior, prior_spread, *options)
    # A sum over one latent is that latent's.
    q, p = (
        [t if t is None else t.unsqueeze(-1) if elementwise else t.flatten(1) for t in pair]
        for pair in (q, p)
    )
    return gaussian_kl(*q, *p)


def posterior_sample_kl(q, q_spread, prior, prior_spread, eps, form, soft_clamp, std_offset):
    """(z, kl) at the noise ``eps``, z in the dtype of ``q``."""
    options = form, soft_clamp, std_offset
    mu, logvar = gaussian_of(q, q_spread, *options)
    z = textbook.gaussian_sample(mu, logvar, eps.to(mu.dtype)).to(q.dtype)
    return z, posterior_kl(q, q_spread, prior, prior_spread, *options, False)


def with_antithetic(eps):
    """The pairs (eps, -eps) of noise [K, ...], one after another: [2 K, ...]."""
    return torch.stack((eps, -eps), 1).flatten(0, 1)


def rsample_log_ratio(
    mu,
    logvar,
    num_samples,
    prior_mu=None,
    prior_logvar=None,
    *,
    gradient="total",
    antithetic=False,
    generator=None,
    improper_prior=False,
):
    """Reference for :func:`fused_elbo.rsample_log_ratio`; ``improper_prior`` is p(z) = 1."""
    shape = mu.shape if mu.shape == logvar.shape else torch.broadcast_shapes(mu.shape, logvar.shape)
    (like,) = accumulate(mu)
    if antithetic:
        eps = with_antithetic(standard_normal((num_samples // 2, *shape), like, generator))
    else:
        eps = standard_normal((num_samples, *shape), like, generator)
    return log_ratio_at(
        eps, mu, logvar, prior_mu, prior_logvar, gradient=gradient, improper_prior=improper_prior
    )


def log_ratio_at(
    eps, mu, logvar, prior_mu=None, prior_logvar=None, *, gradient="total", improper_prior=False
):
    """(z, log p(z) - log q(z)) for the noise eps [K, ..., D]; ``improper_prior`` is p(z) = 1."""
    operands = accumulate(eps, mu, logvar, prior_mu, prior_logvar)
    try:
        z, log_ratio = LogRatio.apply(*operands, gradient, improper_prior)
    except NotImplementedError as error:  # torch's, which names an autograd function
        raise RuntimeError(
            "rsample_log_ratio has no forward-mode derivative, in the reference as in the kernels"
        ) from error
    return z.to(mu.dtype), log_ratio


class LogRatio(torch.autograd.Function):
    """z and the log ratio, with gradients by hand: autograd's would take twice the memory.

    With u = (z - prior_mu) / prior_std the log ratio is 0.5 sum [eps^2 - u^2 + log var(q) -
    log var(p)]. q receives the gradient at z, dz - dlr u / prior_std, and that of log var(q).
    ``"path"`` and ``"dreg"`` leave out the score of q, whose mean is zero. They add the gradient of
    q's density at z, dlr eps / std, which the score would cancel (Roeder et al. 2017).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(eps, mu, logvar, prior_mu, prior_logvar, gradient, improper_prior):
        z = torch.addcmul(mu, torch.exp(0.5 * logvar), eps)
        if improper_prior:
            log_ratio_of_variances = logvar + textbook.LOG_2PI
            difference = eps.square()
        else:
            # eps^2 - u^2 = -delta (delta + 2 eps): nothing cancels where q is close to the prior.
            log_ratio_of_variances = logvar if prior_logvar is None else logvar - prior_logvar
            distance = in_units_of_prior(mu, prior_mu, prior_logvar)
            delta = torch.addcmul(distance, torch.expm1(0.5 * log_ratio_of_variances), eps)
            difference = torch.add(delta, eps, alpha=2).mul_(delta).neg_()
        of_variances = log_ratio_of_variances.expand(eps.shape[1:]).sum(-1)
        # A result that is written to in place has wrong gradients in torch 2.11's compiler.
        return z, 0.5 * (difference.sum(-1) + of_variances)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *operands, ctx.gradient, ctx.improper_prior = inputs
        ctx.save_for_backward(*operands)  # not z, which is the caller's to write to
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dz, dlog_ratio):
        eps, mu, logvar, prior_mu, prior_logvar = ctx.saved_tensors
        std, prior_gradients = torch.exp(0.5 * logvar), (None, None)
        at_z = dz
        if dlog_ratio is not None:
            dlr = dlog_ratio.unsqueeze(-1)
            if not ctx.improper_prior:
                root: Any = 1.0
                ratio = std
                if prior_logvar is not None:
                    root = torch.exp(-0.5 * prior_logvar)
                    ratio = torch.exp(0.5 * (logvar - prior_logvar))
                u = torch.addcmul(in_units_of_prior(mu, prior_mu, prior_logvar), ratio, eps)
                at_z = -dlr * root * u if dz is None else torch.addcmul(dz, dlr * root, u, value=-1)
                prior_gradients = prior_gradients_of(dlr, u, root, ctx.needs_input_grad[3:5])
            if ctx.gradient != "total":
                score = dlr * eps / std
                at_z = score if at_z is None else at_z + score
            if ctx.gradient == "dreg":
                total = dlr.sum(0)
                # All weights zero: no sample says anything.
                at_z = at_z * torch.where(total == 0, 0.0, dlr / total)
        dmu = dlogvar = None
        if at_z is not None:
            dmu = at_z.sum(0)
            dlogvar = 0.5 * std * (at_z * eps).sum(0)
        if dlog_ratio is not None and ctx.gradient == "total":
            own = 0.5 * dlr.sum(0)
            dlogvar = own.expand(eps.shape[1:]) if dlogvar is None else dlogvar + own
        gradients = dmu, dlogvar, *prior_gradients
        tensors = mu, logvar, prior_mu, prior_logvar
        summed = (
            None if g is None or t is None else g.sum_to_size(t.shape)
            for g, t in zip(gradients, tensors, strict=True)
        )
        return None, *summed, None, None


# apply() asks for this signature at every call: a fifth of a small call's time otherwise.
LogRatio.forward.__signature__ = inspect.signature(LogRatio.forward)  # type: ignore[attr-defined]


def in_units_of_prior(z, prior_mu, prior_logvar):
    """(z - prior_mu) / prior_std; None means 0."""
    u = z if prior_mu is None else z - prior_mu
    return u if prior_logvar is None else u * torch.exp(-0.5 * prior_logvar)


def prior_gradients_of(dlr, u, root, needs):
    """Gradients of the log ratio in the parameters of a learned prior."""
    dprior_mu = (dlr * u).sum(0) * root if needs[0] else None
    dprior_logvar = 0.5 * (dlr * (u.square() - 1)).sum(0) if needs[1] else None
    return dprior_mu, dprior_logvar


def importance_weights(log_weights, alpha=0.0):
    """Reference for :func:`fused_elbo.importance_weights`: (bound, weights, ess)."""
    (log_weights,) = accumulate(log_weights)
    powered = torch.zeros_like(log_weights) if alpha == 1 else raised(log_weights, alpha)[0]
    weights = normalised(powered)
    return importance_bound(log_weights, alpha), weights, effective_size(weights)


def effective_size(weights):
    """1 / sum_k v_k^2 of normalised weights over the first dimension; 0 where all are 0."""
    squares = weights.square().sum(0)
    return torch.where(squares == 0, 0.0, 1 / squares)


def order_of(alpha, log_weights):
    """1 - alpha; for torch.compile a tensor, since 2.11 makes a constant of a difference."""
    return 1.0 - (scalar(alpha, log_weights) if torch.compiler.is_compiling() else alpha)


def raised(log_weights, alpha):
    """(order * (log_weights - shift), order, shift), with the shift of the sample that weighs most.

    Not ``order * log_weights``: a compiler fuses that product with a subtraction that follows, and
    of equal numbers leaves the rounding error of the product, which may be large.
    """
    if alpha == 0:
        return log_weights, 1.0, 0.0
    order, values = order_of(alpha, log_weights), log_weights.detach()
    extreme = values.amax(0) if alpha < 1 else values.amin(0)
    shift = torch.where(extreme.isfinite(), extreme, 0.0)
    return order * (log_weights - shift), order, shift


def importance_bound(log_weights, alpha=0.0):
    """The bound alone, differentiable."""
    if alpha == 1:
        return log_weights.mean(0)
    samples, (powered, order, shift) = len(log_weights), raised(log_weights, alpha)
    bound = log_sum_exp(powered, 0) - math.log(samples)
    if abs(1.0 - alpha) < 0.25:
        # The rounding error of a logarithm is divided by order: where the weights are close
        # to each other, as they are with a small order, it is taken of 1 + something small.
        mean = powered.mean(0)
        close = (powered - mean).abs().max(0).values < 0.5
        excess = torch.where(close, powered - mean, 0.0)
        near = torch.log1p(torch.expm1(excess).mean(0)) + mean.masked_fill(~close, 0.0)
        bound = torch.where(close, near, bound)
    return bound if alpha == 0 else bound / order + shift


def log_sum_exp(values, dim):
    """torch.logsumexp; but of -inf alone it has a gradient of NaN, where the limit is 0."""
    impossible = (values == -torch.inf).all(dim, keepdim=True)
    total = torch.logsumexp(values.masked_fill(impossible, 0.0), dim)
    return total.masked_fill(impossible.squeeze(dim), -torch.inf)


def normalised(log_weights):
    """w_k / sum_j w_j over the first dimension, detached; where softmax would be NaN its limits.

    All weights 0: no sample says anything, and all are 0. Some infinite: they share.
    """
    log_weights = log_weights.detach()
    greatest = log_weights.max(0).values
    infinite = (log_weights == torch.inf).to(log_weights.dtype)
    weights = torch.softmax(log_weights, 0)
    weights = torch.where(greatest == -torch.inf, 0.0, weights)
    return torch.where(greatest == torch.inf, infinite / infinite.sum(0), weights)


def mixture_log_prob(z, mu, logvar, log_weights=None):
    """Reference for :func:`fused_elbo.mixture_log_prob`, of log weights that are normalised.

    From COMPARED elements on it takes a part of the components at a time, and again in backward;
    torch.func knows nothing of the latter.
    """
    z, mu, logvar, log_weights = accumulate(z, mu, logvar, log_weights)
    if log_weights is None:
        log_weights = mu.new_full((len(mu),), -math.log(len(mu)))
    chunk = max(1, COMPARED // max(1, z.numel()))
    if len(mu) <= chunk or surely_transforming():
        return log_density_of_part(z, mu, logvar, log_weights)
    parts = zip(*(t.split(chunk) for t in (mu, logvar, log_weights)), strict=True)
    found = [checkpoint(log_density_of_part, z, *part, use_reentrant=False) for part in parts]
    return log_sum_exp(torch.stack(found), 0)


def log_density_of_part(z, mu, logvar, log_weights):
    return log_sum_exp(textbook.gaussian_mixture_log_probs(z, mu, logvar, log_weights), -1)


def marginals_log_prob(z, mu, logvar, log_weights=None):
    return aggregate_log_probs(z, mu, logvar, None, (log_weights, log_weights))[1]


def aggregate_log_probs(z, mu, logvar, stratified_of=None, log_weights=(None, None)):
    """(log q(z), sum_d log q(z_d)) of the components' mean, in float32, or float64 for float64.

    ``stratified_of`` is the size of a data set, of which the components are a batch, in the order
    of z: then they count as in ``textbook.stratified_log_weights``. ``log_weights`` are those of
    the components [K], in the first result and in the second. From COMPARED elements on some rows
    at a time, and again in backward.
    """
    z, mu, logvar, *log_weights = accumulate(z, mu, logvar, *log_weights)
    count = len(mu)

    def of_rows(z, rows, mu, logvar, *log_weights):
        if stratified_of is None:
            usual = mu.new_full((count,), -math.log(count))
        else:
            usual = textbook.stratified_log_weights(rows, count, stratified_of, mu.dtype)
        both = (usual if given is None else given for given in log_weights)
        return textbook.aggregate_log_probs(z, mu, logvar, *both)

    rows, chunk = torch.arange(len(z), device=z.device), max(1, COMPARED // mu.numel())
    if len(z) <= chunk or surely_transforming():
        return of_rows(z, rows, mu, logvar, *log_weights)
    components = mu, logvar, *log_weights
    parts = zip(z.split(chunk), rows.split(chunk), strict=True)
    found = [checkpoint(of_rows, *part, *components, use_reentrant=False) for part in parts]
    joint, marginals = zip(*found, strict=True)
    return torch.cat(joint), torch.cat(marginals)


def kl_decomposition(z, mu, logvar, all_mu=None, all_logvar=None, stratified_of=None):
    """Reference for :func:`fused_elbo.kl_decomposition`, of components that may be those of z."""
    z, mu, logvar, all_mu, all_logvar = accumulate(z, mu, logvar, all_mu, all_logvar)
    components = (mu, logvar) if all_mu is None else (all_mu, all_logvar)
    joint, marginals = aggregate_log_probs(z, *components, stratified_of)
    zero = z.new_zeros(())
    own, prior = gaussian_log_prob(z, mu, logvar), gaussian_log_prob(z, zero, zero)
    return own - joint, joint - marginals, marginals - prior


def expanded(x, recon):
    """x for every sample of recon; torch's losses warn of other shapes."""
    return x if x.dim() == recon.dim() else x.expand_as(recon)


# Below, the precision leaves float32's range, which it must not before it meets the residual.
LEAST_FIXED_LOGVAR = -60


def scaled(sums, factor, constant):
    """``factor`` sums + constant: of numbers in one operation, 3 us less with its backward."""
    if isinstance(factor, torch.Tensor):
        return factor * sums + constant
    return torch.rsub(sums, constant, alpha=-factor)


def reduced(terms, x, reduction="none"):
    """The sum of each example of x, or of each sample of it; with "sum" that of all terms."""
    if reduction == "sum":
        return terms.sum()
    return terms.sum(-1) if x.dim() == 2 else terms.flatten(1 - x.dim()).sum(-1)


# ``F.mse_loss`` without its checks of shapes, which take as long as a small loss.
squared_errors = torch.ops.aten.mse_loss.default
REDUCTIONS = {"none": 0, "sum": 2}  # as torch's operators have them


# The likelihoods below that torch has losses for take a ``reduction``: "none" leaves one number per
# example, or per sample of it, and "sum" one in all.
def gaussian_nll(recon, x, recon_logvar=0.0, reduction="none"):
    """Reference for :func:`fused_elbo.gaussian_nll`."""
    if not isinstance(recon_logvar, torch.Tensor) and recon_logvar < LEAST_FIXED_LOGVAR:
        recon_logvar = recon.new_tensor(recon_logvar, dtype=accumulate(recon)[0].dtype)
    if isinstance(recon_logvar, torch.Tensor):
        recon, x, logvar = accumulate(recon, x, recon_logvar.expand(recon.shape))
        # Where the dimensions of an example begin, behind those of its samples.
        event = 1 - x.dim()
        x, recon, logvar = (t.flatten(event) for t in (x, recon, logvar))
        nll = -textbook.gaussian_log_prob(x, recon, logvar)
        return nll.sum() if reduction == "sum" else nll
    # A fixed sigma leaves the squared error to torch's own loss, in a third of the time.
    recon, x = accumulate(recon, x)
    squares = squared_errors(recon, expanded(x, recon), REDUCTIONS[reduction])
    if reduction == "none":
        squares = reduced(squares, x)
    precision: Any
    if torch.compiler.is_compiling():  # of math.exp it would compile anew for every value
        recon_logvar = scalar(recon_logvar, recon)
        precision = torch.exp(-recon_logvar)
    else:
        recon_logvar = float(recon_logvar)
        precision = math.exp(-recon_logvar)
    count = recon.numel() if reduction == "sum" else math.prod(x.shape[1:])
    constant = textbook.times(count, recon_logvar + textbook.LOG_2PI, squares)
    return scaled(squares, 0.5 * precision, 0.5 * constant)


def bernoulli_nll(logits, x, reduction="none"):
    """Reference for :func:`fused_elbo.bernoulli_nll`."""
    logits, x = accumulate(logits, x)
    # torch's own loss: two thirds of the textbook's memory.
    nll = torch.binary_cross_entropy_with_logits(
        logits, expanded(x, logits), None, None, REDUCTIONS[reduction]
    )
    return nll if reduction == "sum" else reduced(nll, x)


def discretized_mix_logistic_nll(params, x, half_bin, right_edge, guard):
    """-log p of each pixel [B, P], for :func:`fused_elbo.discretized_mix_logistic_nll`."""
    given = *accumulate(params, x), half_bin, right_edge, guard
    log_weights, log_probs = textbook.discretized_mix_logistic_log_probs(*given)
    return -log_sum_exp(log_weights + log_probs, 1)


def laplace_nll(recon, x, log_scale=0.0, reduction="none"):
    """Reference for :func:`fused_elbo.laplace_nll`."""
    if isinstance(log_scale, torch.Tensor):
        recon, x, width = accumulate(recon, x, log_scale)
        terms = (x - recon).abs() * torch.exp(-width) + (width + math.log(2))
        return reduced(terms, x, reduction)
    recon, x = accumulate(recon, x)
    # Not F.l1_loss, which takes 2 us more.
    distance = reduced((recon - x).abs(), x, reduction)
    precision: Any
    if torch.compiler.is_compiling():  # as above
        log_scale = scalar(log_scale, recon)
        precision = torch.exp(-log_scale)
    else:
        precision = math.exp(-log_scale)
    count = recon.numel() if reduction == "sum" else math.prod(x.shape[1:])
    constant = textbook.times(count, log_scale + math.log(2), distance)
    return scaled(distance, precision, constant)


def poisson_nll(log_rate, x):
    """Reference for :func:`fused_elbo.poisson_nll`."""
    log_rate, x = accumulate(log_rate, x)
    return reduced(textbook.poisson_nll_terms(log_rate, x), x)


def negative_binomial_nll(log_mean, x, log_theta=0.0, zero_logits=None):
    """Reference for :func:`fused_elbo.negative_binomial_nll`."""
    terms = negative_binomial_nll_terms(log_mean, x, log_theta, zero_logits)
    return reduced(terms, x)


def negative_binomial_nll_terms(log_mean, x, log_theta=0.0, zero_logits=None):
    """The same of each element."""
    if not isinstance(log_theta, torch.Tensor):
        log_theta = scalar(log_theta, log_mean)
    given = accumulate(log_mean, x, log_theta, zero_logits)
    return textbook.negative_binomial_nll_terms(*given)


def softmax_negative_binomial_nll(logits, x, log_theta, log_library, zero_logits=None):
    """Reference for :func:`fused_elbo.softmax_negative_binomial_nll`.

    ``log_library`` has events of size 1.
    """
    logits, log_library = accumulate(logits, log_library)
    event = tuple(range(1 - x.dim(), 0))
    log_mean = log_library + (logits - torch.logsumexp(logits, event, keepdim=True))
    return negative_binomial_nll(log_mean, x, log_theta, zero_logits)


def multinomial_nll(logits, counts):
    """Reference for :func:`fused_elbo.multinomial_nll`."""
    logits, x = accumulate(logits, counts)
    event = 1 - x.dim()
    return textbook.multinomial_nll(logits.flatten(event), x.flatten(1))


def categorical_nll(logits, target, all_known=False, reduction="none"):
    """Reference for :func:`fused_elbo.categorical_nll`; ``all_known``: targets are in [0, C)."""
    (logits,) = accumulate(logits)
    events = target.dim() - 1
    if target.dim() < logits.dim() - 1:
        target = target.expand(logits.shape[:-1])
    classes = target
    if not all_known:
        known = (target >= 0) & (target < logits.shape[-1])
        classes = torch.where(known, target, -100)  # which torch's own loss leaves out
    if all_known and reduction == "sum":
        return F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="sum")
    nll = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), reduction="none")
    if target.dim() > 1:
        nll = nll.view(target.shape)
    if not all_known:
        nll = torch.where(known, nll, torch.nan)
    if reduction == "sum":
        return nll.sum()
    return nll.flatten(-events).sum(-1) if events else nll
