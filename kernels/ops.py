"""The ops, each declared once: its schema, what has a gradient, what is saved, shapes of results.

All ops take rows: operands are [rows, cols] and sums over them [rows], in nats. A prior of None is
N(0, I). Each op has a twin in ``estimators/reference``: a PyTorch function of the same arguments.
"""

from typing import Any

import torch
from torch import Tensor

from .library import (
    OPS,
    KernelFunction,
    Op,
    at_positions,
    declare,
    differentiated,
    gradients_like,
    once_differentiable,
    record,
    scatter_gradients,
)
from .likelihoods import LIKELIHOOD, LIKELIHOODS, elbo_launcher, loss_launcher
from .rows import accumulator, halves, samples_in


@declare(
    "gaussian_nll",
    "gaussian_nll(Tensor recon, Tensor x, Tensor? logvar, float logvar_value, int sign)"
    " -> (Tensor nll)",
    gradients=("recon", "x", "logvar"),
    launchers=LIKELIHOOD,
)
def gaussian_nll(recon, x, logvar, logvar_value, sign):
    """-log N(x; recon, diag exp logvar), or the log-density where ``sign`` is -1.

    ``logvar`` is [rows, cols], [rows, 1], or None for the float. x may have fewer rows than recon,
    [samples * rows, cols], which then holds one sample of all rows after another.
    """
    return recon.new_empty(recon.shape[0], dtype=accumulator(recon, x, logvar))


@declare(
    "bernoulli_nll",
    "bernoulli_nll(Tensor recon, Tensor x, bool probabilities) -> (Tensor nll)",
    gradients=("recon", "x"),
    launchers=LIKELIHOOD,
)
def bernoulli_nll(recon, x, probabilities):
    """-log Bernoulli(x) from logits or probabilities recon; x may have fewer rows, as above."""
    return recon.new_empty(recon.shape[0], dtype=accumulator(recon, x))


@declare(
    "laplace_nll",
    "laplace_nll(Tensor recon, Tensor x, Tensor? log_scale, float log_scale_value) -> (Tensor nll)",
    gradients=("recon", "x", "log_scale"),
    launchers=LIKELIHOOD,
)
def laplace_nll(recon, x, log_scale, log_scale_value):
    """-log Laplace(x; recon, exp log_scale); the arguments are as in ``gaussian_nll``."""
    return recon.new_empty(recon.shape[0], dtype=accumulator(recon, x, log_scale))


@declare(
    "poisson_nll",
    "poisson_nll(Tensor log_rate, Tensor x) -> (Tensor nll)",
    gradients=("log_rate",),
    launchers=LIKELIHOOD,
)
def poisson_nll(log_rate, x):
    """-log Poisson(x; exp log_rate); NaN where x is negative. x may have fewer rows, as above."""
    return log_rate.new_empty(log_rate.shape[0], dtype=accumulator(log_rate, x))


@declare(
    "negative_binomial_nll",
    "negative_binomial_nll(Tensor log_mean, Tensor x, Tensor? log_theta, Tensor? zero_logits, "
    "float log_theta_value, bool elementwise) -> (Tensor nll)",
    gradients=("log_mean", "log_theta", "zero_logits"),
    launchers=LIKELIHOOD,
)
def negative_binomial_nll(log_mean, x, log_theta, zero_logits, log_theta_value, elementwise):
    """-log NB(x; mean exp log_mean, inverse dispersion exp log_theta); NaN where x is negative.

    ``log_theta`` is [rows, cols], [rows, 1], [1, cols] for all rows, or None for the float. With
    ``zero_logits`` [rows, cols] the distribution is zero-inflated. x may have fewer rows, as above.
    With ``elementwise`` the result is [rows, cols] instead of the sums over rows.
    """
    shape = log_mean.shape if elementwise else log_mean.shape[:1]
    return log_mean.new_empty(shape, dtype=accumulator(log_mean, x, log_theta, zero_logits))


@declare(
    "softmax_negative_binomial_nll",
    "softmax_negative_binomial_nll(Tensor logits, Tensor x, Tensor? log_theta, "
    "Tensor log_library, Tensor? zero_logits, float log_theta_value) -> (Tensor nll)",
    gradients=("logits", "log_theta", "log_library", "zero_logits"),
    launchers=LIKELIHOOD,
)
def softmax_negative_binomial_nll(logits, x, log_theta, log_library, zero_logits, log_theta_value):
    """The same for means exp(log_library) * softmax(logits), with log_library [rows, 1]."""
    acc = accumulator(logits, x, log_theta, log_library, zero_logits)
    return logits.new_empty(logits.shape[0], dtype=acc)


@declare(
    "multinomial_nll",
    "multinomial_nll(Tensor logits, Tensor x) -> (Tensor nll)",
    gradients=("logits",),
    launchers=LIKELIHOOD,
)
def multinomial_nll(logits, x):
    """-log Multinomial(x; softmax(logits)) of each row; NaN where x is negative.

    x may have fewer rows, as above.
    """
    return logits.new_empty(logits.shape[0], dtype=accumulator(logits, x))


@declare(
    "categorical_nll",
    "categorical_nll(Tensor logits, Tensor target) -> (Tensor nll)",
    gradients=("logits",),
    launchers=LIKELIHOOD,
)
def categorical_nll(logits, target):
    """-log softmax(logits)[target] of each row [rows, classes]; NaN where the target is no class.

    ``target`` is int64 [rows], or has fewer rows, as above.
    """
    return logits.new_empty(logits.shape[0], dtype=accumulator(logits))


def likelihood_op(
    likelihood: str,
    width: Tensor | None = None,
    width_value: float = 0.0,
    zero_logits: Tensor | None = None,
) -> tuple[Op, tuple[Any, ...]]:
    """(op, its arguments after the network's output and x) of the likelihood of this name."""
    found = LIKELIHOODS[likelihood]
    return OPS[found.op], found.options(width, width_value, zero_logits)


@declare(
    "gaussian_kl",
    "gaussian_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar) -> (Tensor kl)",
    gradients=("mu", "logvar", "prior_mu", "prior_logvar"),
)
def gaussian_kl(mu, logvar, prior_mu, prior_logvar):
    """KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar))."""
    return mu.new_empty(mu.shape[0], dtype=accumulator(mu, logvar, prior_mu, prior_logvar))


class BalancedKLFunction(KernelFunction):
    """The clipped KL, returned twice: once with the gradient of the prior, once with that of q."""

    @staticmethod
    def forward(mu, logvar, prior_mu, prior_logvar, free_nats):
        dyn = gaussian_kl.forward(mu, logvar, prior_mu, prior_logvar).clamp_min(free_nats)
        return dyn, dyn.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.free_nats = inputs
        ctx.save_for_backward(*tensors, output[0].detach())
        constant = [not any(t.requires_grad for t in side) for side in (tensors[2:], tensors[:2])]
        ctx.mark_non_differentiable(*(o for o, c in zip(output, constant, strict=True) if c))
        ctx.set_materialize_grads(False)

    @staticmethod
    def arguments(ctx):
        return *ctx.saved_tensors[:4], ctx.free_nats

    @staticmethod
    @once_differentiable
    def backward(ctx, ddyn, drep):
        *tensors, clipped = ctx.saved_tensors
        needs = ctx.needs_input_grad
        outside = clipped <= ctx.free_nats  # False for NaN, which thus keeps its gradient

        def gradients(upstream, wanted):
            if upstream is None or not any(wanted):
                return [None] * 4
            found = gaussian_kl.backward(upstream.masked_fill(outside, 0.0), *tensors, list(wanted))
            return scatter_gradients(found, wanted)

        of_q = gradients(drep, (*needs[:2], False, False))
        of_prior = gradients(ddyn, (False, False, *needs[2:4]))
        return *of_q[:2], *of_prior[2:], None


def balanced_kl(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, free_nats: float
) -> tuple[Tensor, Tensor]:
    """(dyn, rep): max(free_nats, KL), for the prior alone and for q alone."""
    return record(BalancedKLFunction, mu, logvar, prior_mu, prior_logvar, free_nats)


@declare(
    "gaussian_rsample",
    "gaussian_rsample(Tensor mu, Tensor logvar, Tensor seed, SymInt? samples, bool keep_noise) "
    "-> Tensor[]",
    gradients=("mu", "logvar"),
    saved=("logvar", "seed", "samples"),
    like={"mu": "logvar"},
    results=("z",),
    kept="noise",
)
def gaussian_rsample(mu, logvar, seed, samples, keep_noise):
    """z [samples, rows, cols], or [rows, cols] without ``samples``.

    ``seed`` is an int64 scalar on the device. With ``keep_noise``, z - mu [rows, cols], before it
    is rounded, is kept for backward, which otherwise draws it again: on CPUs, for one sample.
    """
    shape = mu.shape if samples is None else (samples, *mu.shape)
    return [mu.new_empty(shape), *noise_of(mu, logvar, keep_noise)]


def noise_of(mu: Tensor, logvar: Tensor, keep_noise: bool) -> list[Tensor]:
    return [mu.new_empty(mu.shape, dtype=accumulator(mu, logvar))] if keep_noise else []


@declare(
    "rsample_kl",
    "rsample_kl(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor seed, "
    "bool keep_noise) -> Tensor[]",
    gradients=("mu", "logvar", "prior_mu", "prior_logvar"),
    saved=("mu", "logvar", "prior_mu", "prior_logvar", "seed"),
    results=("z", "kl"),
    kept="noise",
)
def rsample_kl(mu, logvar, prior_mu, prior_logvar, seed, keep_noise):
    """One sample z [rows, cols], and the KL; ``keep_noise`` as above."""
    acc = accumulator(mu, logvar, prior_mu, prior_logvar)
    noise = noise_of(mu, logvar, keep_noise)
    return [mu.new_empty(mu.shape), mu.new_empty(mu.shape[0], dtype=acc), *noise]


@declare(
    "gaussian_rsample",
    "rsample_log_ratio(Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar, "
    "Tensor seed, SymInt first_draw, SymInt samples, str gradient, bool improper_prior, "
    "bool antithetic) -> (Tensor z, Tensor log_ratio)",
    gradients=("mu", "logvar", "prior_mu", "prior_logvar"),
)
def rsample_log_ratio(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    seed,
    first_draw,
    samples,
    gradient,
    improper_prior,
    antithetic,
):
    """z [samples, rows, cols] and log p(z) - log q(z) [samples, rows].

    ``first_draw`` is the position of the first sample in the noise stream. It counts samples, or
    pairs of them if ``antithetic``. ``gradient`` is for backward: "total", "path" or "dreg". With
    ``improper_prior``, p(z) = 1.
    """
    acc = accumulator(mu, logvar, prior_mu, prior_logvar)
    z = mu.new_empty(samples, *mu.shape)
    return z, mu.new_empty(samples, mu.shape[0], dtype=acc)


@declare(
    "posterior",
    "posterior_kl(Tensor q, Tensor? q_spread, Tensor? prior, Tensor? prior_spread, str form, "
    "float soft_clamp, float std_offset, bool elementwise) -> (Tensor kl)",
    gradients=("q", "q_spread", "prior", "prior_spread"),
)
def posterior_kl(q, q_spread, prior, prior_spread, form, soft_clamp, std_offset, elementwise):
    """The KL of Gaussians as networks put them out, of each row or, ``elementwise``, each element.

    ``q`` has the means [rows, cols] and ``q_spread`` the spreads. Where ``q_spread`` is None, q
    [rows, 2 cols] has both, the means first. The prior is given the same way. ``form`` says what a
    spread is: "clamped_logvar", "log_std", "std" or "variance".
    """
    mean, _ = halves(q, q_spread)
    shape = mean.shape if elementwise else mean.shape[:1]
    return q.new_empty(shape, dtype=accumulator(q, q_spread, prior, prior_spread))


@declare(
    "posterior",
    "posterior_sample_kl(Tensor q, Tensor? q_spread, Tensor? prior, Tensor? prior_spread, "
    "Tensor? noise, Tensor? seed, str form, float soft_clamp, float std_offset, bool keep_noise)"
    " -> Tensor[]",
    gradients=("q", "q_spread", "prior", "prior_spread"),
    results=("z", "kl"),
    kept="kept_noise",
)
def posterior_sample_kl(
    q, q_spread, prior, prior_spread, noise, seed, form, soft_clamp, std_offset, keep_noise
):
    """One sample z [rows, cols], from ``noise`` or from ``seed``, and the KL of each row."""
    mean, _ = halves(q, q_spread)
    acc = accumulator(q, q_spread, prior, prior_spread)
    kept = [q.new_empty(mean.shape, dtype=acc)] if keep_noise else []
    return [q.new_empty(mean.shape), q.new_empty(mean.shape[0], dtype=acc), *kept]


@declare(
    "mixture_log_prob",
    "mixture_log_prob(Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights) -> Tensor[]",
    gradients=("z", "mu", "logvar", "log_weights"),
    results=("log_prob",),
    kept="logsumexp",
)
def mixture_log_prob(z, mu, logvar, log_weights):
    """log sum_k exp(log_weights_k) N(z; mu_k, diag exp logvar_k).

    ``mu`` and ``logvar`` are [components, cols]. ``log_weights`` is [components], or None for equal
    weights.
    """
    log_prob = z.new_empty(z.shape[0], dtype=accumulator(z, mu, logvar, log_weights))
    return [log_prob, torch.empty_like(log_prob)]


@declare(
    "marginals_log_prob",
    "marginals_log_prob(Tensor z, Tensor mu, Tensor logvar, Tensor? log_weights) -> Tensor[]",
    gradients=("z", "mu", "logvar", "log_weights"),
    results=("log_prob",),
    kept="logsumexp",
)
def marginals_log_prob(z, mu, logvar, log_weights):
    """sum_d log sum_k exp(log_weights_k) N(z_d; mu_kd, exp logvar_kd): a mixture's marginals.

    The arguments are those of ``mixture_log_prob``. ``logsumexp`` has one number per latent and
    row, to base 2.
    """
    log_prob = z.new_empty(z.shape[0], dtype=accumulator(z, mu, logvar, log_weights))
    return [log_prob, log_prob.new_empty(z.shape[1], z.shape[0])]


@declare(
    "kl_decomposition",
    "kl_decomposition(Tensor z, Tensor mu, Tensor logvar, Tensor? all_mu, Tensor? all_logvar, "
    "SymInt? dataset_size) -> Tensor[]",
    gradients=("z", "mu", "logvar", "all_mu", "all_logvar"),
    results=("mutual_information", "total_correlation", "dimension_wise"),
    kept="logsumexp",
)
def kl_decomposition(z, mu, logvar, all_mu, all_logvar, dataset_size):
    """log q(z|x), log q(z), sum_d log q(z_d) and log p(z): each minus the next one.

    q(z|x) has the rows of ``mu`` and ``logvar``. q(z) and its marginals are mixtures as above.
    Their components are ``all_mu`` and ``all_logvar``, or the rows of q(z|x) where these are None.
    The weights are equal, or stratified where the components are a batch of a data set of
    ``dataset_size``, in the order of z. ``logsumexp`` has one row per latent, to base 2, and a last
    row for all latents together.
    """
    log_prob = z.new_empty(z.shape[0], dtype=accumulator(z, mu, logvar, all_mu, all_logvar))
    terms = [torch.empty_like(log_prob) for _ in range(3)]
    return [*terms, log_prob.new_empty(z.shape[1] + 1, z.shape[0])]


@declare(
    "discretized_mix_logistic_nll",
    "discretized_mix_logistic_nll(Tensor params, Tensor x, float half_bin, float right_edge, "
    "float guard) -> (Tensor nll)",
    gradients=("params",),
    launchers=LIKELIHOOD,
)
def discretized_mix_logistic_nll(params, x, half_bin, right_edge, guard):
    """-log p of each pixel, [B, P], from params [B, 10 mixtures, P] and x [B, 3, P].

    A bin reaches ``half_bin`` to each side; the first bin, and the last, above ``right_edge``,
    reach to infinity. Where the probability of another bin is below ``guard``, the density in its
    middle stands in, as in PixelCNN++ for 1e-5. A ``guard`` of 0 turns this off.
    """
    shape = params.shape[0], params.shape[2]
    return params.new_empty(shape, dtype=accumulator(params, x))


@declare(
    "importance_weights",
    "importance_weights(Tensor log_ratio, Tensor? nll, float alpha) -> Tensor[]",
)
def importance_weights_forward(log_ratio, nll, alpha):
    """[bound, weights, ess], and with an nll the log weights, which else are log_ratio itself."""
    weights = log_ratio.new_empty(log_ratio.shape, dtype=accumulator(log_ratio, nll))
    bound, ess = weights.new_empty(weights.shape[1]), weights.new_empty(weights.shape[1])
    return [bound, weights, ess] + ([] if nll is None else [torch.empty_like(weights)])


class ImportanceWeightsFunction(KernelFunction):
    """(bound, weights, ess), and with an nll the log weights; only the bound has a gradient."""

    @staticmethod
    def forward(log_ratio, nll, alpha):
        return tuple(importance_weights_forward(log_ratio, nll, alpha))

    @staticmethod
    def setup_context(ctx, inputs, output):
        log_ratio, nll, ctx.alpha = inputs
        # The inputs are saved so that a second derivative in them raises and is not silently lost.
        ctx.save_for_backward(output[1], log_ratio, nll)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def arguments(ctx):
        return *ctx.saved_tensors[1:], ctx.alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, dbound, *_):
        if dbound is None:
            return None, None, None
        weights, log_ratio, nll = ctx.saved_tensors
        gradient = dbound * weights
        dlog_ratio = gradient.to(log_ratio.dtype) if ctx.needs_input_grad[0] else None
        dnll = gradient.neg().to(nll.dtype) if ctx.needs_input_grad[1] else None
        return dlog_ratio, dnll, None


def importance_weights(
    log_ratio: Tensor, nll: Tensor | None, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(bound, weights, ess, log weights) of log weights log_ratio - nll, or log_ratio.

    Operands are [samples, rows].
    """
    bound, weights, ess, *rest = record(ImportanceWeightsFunction, log_ratio, nll, alpha)
    return bound, weights, ess, rest[0] if rest else log_ratio.detach()


@declare(
    "elbo_loss",
    "elbo_loss(Tensor recon, Tensor x, Tensor? width, Tensor? zero_logits, float width_value, "
    "Tensor? kl, str likelihood, float beta, float scale, bool[] needs) -> Tensor[]",
    launchers=(elbo_launcher,),
)
def elbo_loss_forward(
    recon, x, width, zero_logits, width_value, kl, likelihood, beta, scale, needs
):
    """[loss, nll, kl], then the gradients of the likelihood's op that ``needs`` asks for."""
    tensors = recon, x, width, zero_logits
    positions = OPS[LIKELIHOODS[likelihood].op].gradients
    acc = accumulator(*tensors)
    totals = [recon.new_empty((), dtype=acc) for _ in range(3)]
    return [*totals, *gradients_like([tensors[position] for position in positions], needs)]


@declare("elbo_loss", "scale_(Tensor(a!) tensor, Tensor factor) -> ()")
def scale_(tensor, factor):
    """tensor *= factor in place."""


class ELBOLossFunction(KernelFunction):
    """(loss, nll, kl), then the gradients of the likelihood, for backward.

    The first backward scales the gradients that forward wrote, in place, and returns them. A second
    one, over a retained graph, computes them again, because the caller owns the first ones.
    """

    @staticmethod
    def forward(recon, x, width, zero_logits, width_value, kl, likelihood, beta, scale, needs):
        tensors = recon, x, width, zero_logits
        return tuple(elbo_loss_forward(*tensors, width_value, kl, likelihood, beta, scale, needs))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.width_value, kl, ctx.likelihood, ctx.beta, ctx.scale, _ = inputs
        ctx.save_for_backward(*tensors, kl)
        ctx.gradients = output[3:]
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def arguments(ctx):
        *tensors, kl = ctx.saved_tensors
        return *tensors, ctx.width_value, kl, ctx.likelihood, ctx.beta, ctx.scale, None

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, dnll, dkl, *_):
        recon, x, width, zero_logits, kl = ctx.saved_tensors
        factor = weighted_sum((dloss, 1.0), (dnll, 1.0))
        gradients, ctx.gradients = ctx.gradients, None
        if factor is None:
            gradients = (None,) * 4
        else:
            op, options = likelihood_op(ctx.likelihood, width, ctx.width_value, zero_logits)
            needs = [ctx.needs_input_grad[position] for position in op.gradients]
            if gradients is not None:
                for gradient in gradients:
                    scale_(gradient, factor)
            else:
                dnll = (factor * (ctx.scale / samples_in(recon, x))).expand(recon.shape[0])
                gradients = op.backward(dnll, recon, x, *options, needs)
            gradients = at_positions(scatter_gradients(gradients, needs), op.gradients, 4)
        kl_grad = None
        if ctx.needs_input_grad[5]:
            kl_grad = weighted_sum((dloss, ctx.beta * ctx.scale), (dkl, ctx.scale))
            kl_grad = None if kl_grad is None else kl_grad.expand(kl.shape[0])
        return *gradients, None, kl_grad, None, None, None, None


def weighted_sum(*terms: tuple[Tensor | None, float]) -> Tensor | None:
    """sum of weight * tensor over the tensors that are not None; a weight of 1 costs no launch."""
    present = [t if weight == 1.0 else t * weight for t, weight in terms if t is not None]
    return sum(present[1:], start=present[0]) if present else None


def elbo_loss(
    recon: Tensor,
    x: Tensor,
    width: Tensor | None,
    width_value: float,
    zero_logits: Tensor | None = None,
    *,
    kl: Tensor | None,
    likelihood: str,
    beta: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, nll, kl): ``scale`` times the sums over rows, with loss = nll + beta kl.

    ``likelihood`` is a name in ``LIKELIHOODS``, and the operands are those of its op. The nll is
    the mean over samples. ``kl`` has one number per example, or is None.
    """
    tensors = recon, x, width, zero_logits
    track = torch.is_grad_enabled()
    positions = OPS[LIKELIHOODS[likelihood].op].gradients
    wanted = (tensors[position] for position in positions)
    needs = [track and t is not None and t.requires_grad for t in wanted]
    arguments = *tensors, width_value, kl, likelihood, beta, scale, needs
    if not differentiated(arguments):
        return tuple(elbo_loss_forward(*arguments)[:3])
    return record(ELBOLossFunction, *arguments)[:3]


@declare(
    "softmax_negative_binomial_nll",
    "softmax_negative_binomial_loss(Tensor logits, Tensor x, Tensor? log_theta, "
    "Tensor log_library, Tensor? zero_logits, float log_theta_value, float scale, bool[] needs)"
    " -> Tensor[]",
    launchers=(loss_launcher,),
)
def softmax_negative_binomial_loss_forward(
    logits, x, log_theta, log_library, zero_logits, log_theta_value, scale, needs
):
    """[scale * sum of the nll], then the wanted gradients."""
    tensors = logits, log_theta, log_library, zero_logits
    loss = logits.new_empty((), dtype=accumulator(x, *tensors))
    return [loss, *gradients_like(tensors, needs)]


class SoftmaxNegativeBinomialLossFunction(KernelFunction):
    """The loss, and the gradients for backward, as in ``ELBOLossFunction``."""

    @staticmethod
    def forward(*arguments):
        return tuple(softmax_negative_binomial_loss_forward(*arguments))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.log_theta_value, ctx.scale, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.gradients = output[1:]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def arguments(ctx):
        return *ctx.saved_tensors, ctx.log_theta_value, ctx.scale, None

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, *_):
        gradients, ctx.gradients = ctx.gradients, None
        if dloss is None:
            return (None,) * 8
        op = softmax_negative_binomial_nll
        needs = [ctx.needs_input_grad[position] for position in op.gradients]
        if gradients is not None:
            for gradient in gradients:
                scale_(gradient, dloss)
        else:
            tensors = ctx.saved_tensors
            dnll = (dloss * ctx.scale).expand(tensors[0].shape[0])
            gradients = op.backward(dnll, *tensors, ctx.log_theta_value, needs)
        return at_positions(scatter_gradients(gradients, needs), op.gradients, 8)


def softmax_negative_binomial_loss(
    logits: Tensor,
    x: Tensor,
    log_theta: Tensor | None,
    log_library: Tensor,
    zero_logits: Tensor | None,
    log_theta_value: float,
    scale: float,
) -> Tensor:
    """``scale`` times the sum of the nll over rows."""
    tensors = logits, log_theta, log_library, zero_logits
    track = torch.is_grad_enabled()
    needs = [track and t is not None and t.requires_grad for t in tensors]
    given = logits, x, log_theta, log_library, zero_logits, log_theta_value, scale, needs
    return record(SoftmaxNegativeBinomialLossFunction, *given)[0]


@declare(
    "discretized_mix_logistic_nll",
    "discretized_mix_logistic_loss(Tensor params, Tensor x, float half_bin, float right_edge, "
    "float guard, float scale, bool[] needs) -> Tensor[]",
    launchers=(loss_launcher,),
)
def discretized_mix_logistic_loss_forward(params, x, half_bin, right_edge, guard, scale, needs):
    """[scale * sum of the nll of all pixels], then the gradient of params, if it is wanted."""
    loss = params.new_empty((), dtype=accumulator(params, x))
    return [loss, *gradients_like((params,), needs)]


class DiscretizedMixLogisticLossFunction(KernelFunction):
    """The loss, and the gradient of params for backward, as in ``ELBOLossFunction``."""

    @staticmethod
    def forward(params, x, half_bin, right_edge, guard, scale, needs):
        given = params, x, half_bin, right_edge, guard, scale, needs
        return tuple(discretized_mix_logistic_loss_forward(*given))

    @staticmethod
    def setup_context(ctx, inputs, output):
        params, x, *ctx.bins, ctx.scale, _ = inputs
        ctx.save_for_backward(params, x)
        ctx.gradients = output[1:]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def arguments(ctx):
        return *ctx.saved_tensors, *ctx.bins, ctx.scale, None

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss, *_):
        gradients, ctx.gradients = ctx.gradients, None
        rest = (None,) * 6
        if dloss is None:
            return None, *rest
        if gradients:
            scale_(gradients[0], dloss)
            return gradients[0], *rest
        params, x = ctx.saved_tensors
        dnll = (dloss * ctx.scale).expand(params.shape[0], params.shape[2])
        return *discretized_mix_logistic_nll.backward(dnll, params, x, *ctx.bins, [True]), *rest


def discretized_mix_logistic_loss(
    params: Tensor, x: Tensor, half_bin: float, right_edge: float, guard: float, scale: float
) -> Tensor:
    """``scale`` times the sum of the nll over all pixels."""
    needs = [torch.is_grad_enabled() and params.requires_grad]
    return record(
        DiscretizedMixLogisticLossFunction, params, x, half_bin, right_edge, guard, scale, needs
    )[0]
