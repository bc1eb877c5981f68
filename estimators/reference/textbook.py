"""The textbook: one function per equation, in plain PyTorch.

Every function keeps the dtype of its arguments, broadcasts, and is differentiable in all
of them. Values are in nats, and every normalising constant is kept. The fused kernels
are validated against these equations in float64.

Source: Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014 (K&W), where no other is
named.
"""

import math

import torch
import torch.nn.functional as F

LOG_2PI = math.log(2 * math.pi)
STIRLING_FIT = (
    -1.8348238882026635e-05, 0.0002027003065450117, -0.0007224709261208773, 0.0011103959986940026,
    -7.479310443159193e-05, -0.0027689451817423105, -4.0759195485406963e-07, 0.0833333358168602,
)  # fmt: skip


def gaussian_log_prob(x, mu, logvar):
    """log N(x; mu, diag exp logvar), summed over the last dimension.

    -1/2 sum_d [(x_d - mu_d)^2 exp(-logvar_d) + logvar_d + log 2 pi]   (K&W, appendix C.2)
    """
    # Scaled before squaring: 0 * inf does not arise where the density is finite.
    residual = (x - mu) * torch.exp(-0.5 * logvar)
    sums = (residual.square() + logvar).sum(-1)
    return -0.5 * (sums + times(residual.shape[-1], LOG_2PI, sums))


def times(count, number, like):
    """A size times a number; torch.jit.trace's sizes are tensors, whose product is float32."""
    return (count.to(like.dtype) if isinstance(count, torch.Tensor) else count) * number


def gaussian_mixture_log_probs(z, mu, logvar, log_weights):
    """log w_k N(z; mu_k, diag exp logvar_k) of each component k of [K, D], as a last dimension.

    logsumexp of it is the density of the mixture (Tomczak & Welling 2018, eq. 9, for a VampPrior).
    """
    return gaussian_log_prob(z.unsqueeze(-2), mu, logvar) + log_weights


def stratified_log_weights(rows, batch, dataset_size, dtype=None):
    """log W_ij of those rows i for all j of a batch: how each q(z_i | x_j) counts in q(z_i).

    With M = batch - 1 it is log 1/N for i's own posterior, log (N - M) / (N M) for one other, the
    next, and log 1/M for the rest: exp of a row adds up to 1 (Chen et al. 2018, appendix C.2).
    """
    others, size = batch - 1, dataset_size
    like = {"dtype": dtype, "device": rows.device}
    log_weights = torch.full((len(rows), batch), -math.log(others), **like)
    following = ((rows + 1) % batch)[:, None]
    log_weights.scatter_(1, following, math.log((size - others) / (size * others)))
    return log_weights.scatter_(1, rows[:, None], -math.log(size))


def aggregate_log_probs(z, mu, logvar, log_weights, log_weights_of_marginals):
    """(log q(z), sum_d log q(z_d)) of q(z) = sum_k w_k N(z; mu_k, diag exp logvar_k).

    z [B, D], components [K, D], log weights [K], or [B, K] (Chen et al. 2018, eq. 2): those of the
    marginals are the same ones, but in published code.
    """
    residual = (z.unsqueeze(1) - mu) * torch.exp(-0.5 * logvar)
    pairs = -0.5 * (residual.square() + logvar + LOG_2PI)
    joint = torch.logsumexp(pairs.sum(-1) + log_weights, 1)
    return joint, torch.logsumexp(pairs + log_weights_of_marginals.unsqueeze(-1), 1).sum(-1)


def poisson_nll_terms(log_rate, x):
    """-log Poisson(x; exp log_rate) of each element: exp(log_rate) - x log_rate + log x!.

    In this form large terms cancel: at x = rate = 1e7 the nll is 9, the difference of numbers near
    1.5e8. Here it is x ((b - x) / x - log(b / x)) for the rate b, the deviance, and what is left at
    b = x (Loader, "Fast and accurate computation of binomial probabilities", 2000). A negative
    count is NaN.
    """
    rate, count = torch.exp(log_rate), some_count(x)
    log_count = torch.log(count)
    deviance = count * differentiable_deviance((rate - count) / count, log_rate - log_count)
    return torch.where(x == 0, rate, deviance + count_constant(count, log_count))


def multinomial_nll(logits, x):
    """-log Multinomial(x; softmax(logits)) over the last dimension, of n = sum x counts:

    sum_i [x_i log(x_i / (n p_i)) + c(x_i)] - c(n) with c(x) = log x! - x log x + x. Zeros add
    nothing, whatever their probability; a negative count is NaN (Liang et al. 2018, eq. 2).
    """
    log_probs, n = torch.log_softmax(logits, -1), x.sum(-1)
    count, some = some_count(x), torch.where(n > 0, n, 1.0)
    log_count, log_n = torch.log(count), torch.log(some)
    terms = count * ((log_count - log_n.unsqueeze(-1)) - log_probs)
    terms = torch.where(x == 0, 0.0, terms + count_constant(count, log_count))
    return terms.sum(-1) - torch.where(n > 0, count_constant(some, log_n), 0.0)


def negative_binomial_nll_terms(log_mean, x, log_theta, zero_logits=None):
    """-log NB(x; mu, theta) of each element, mu = exp(log_mean), theta = exp(log_theta):

    theta log((theta + mu) / theta) + x log((theta + mu) / mu)
    - log Gamma(x + theta) + log Gamma(theta) + log x!

    in Loader's form, with deviances as above; zero-inflated by pi = sigmoid(zero_logits), the nll
    of pi [x = 0] + (1 - pi) NB(x) (Lopez et al. 2018, eq. 3 of their methods).
    """
    zero = torch.exp(log_theta) * F.softplus(log_mean - log_theta, threshold=40.0)
    nll = negative_binomial_nll_of_counts(log_mean, some_count(x), log_theta)
    if zero_logits is not None:
        # log sigmoid and softplus are of one sign: nothing cancels but where all of it is tiny.
        not_inflated = F.softplus(zero_logits, threshold=40.0)
        zero = not_inflated - torch.logaddexp(zero_logits.expand_as(zero), -zero)
        nll = nll + not_inflated
    return torch.where(x == 0, zero, nll)


def negative_binomial_nll_of_counts(log_mean, x, log_theta):
    """For x > 0: theta and x times a deviance each, and what is left where they are 0."""
    most = 700.0 if log_mean.dtype == torch.float64 else 80.0
    bounded_mean, log_theta = log_mean.clamp(-most, most), log_theta.clamp(-most, most)
    mu, theta = torch.exp(bounded_mean), torch.exp(log_theta)
    n, log_x = theta + x, torch.log(x)
    t, u = (x - mu) / (theta + mu), n / (theta + mu)
    log_u, log_n = torch.log(u), torch.log(n)
    nll = theta * differentiable_deviance(t, log_u) + count_constant(x, log_x)
    nll = nll + x * differentiable_deviance(-theta * t / x, log_u + (bounded_mean - log_x))
    least = least_of_series(theta)
    many = theta >= least
    wide, narrow = torch.where(many, theta, least), torch.where(many, 1.0, theta)
    large = 0.5 * torch.log1p(x / wide) + stirling_series(wide) - stirling_series(wide + x)
    small = log_n - count_constant(n, log_n)
    small = small - log_theta + count_constant(narrow, torch.log(narrow))
    nll = nll + torch.where(many, large, small)
    # Linear beyond the bounds, where exp would leave the range.
    beyond = torch.where(log_mean.abs() > most, log_mean - bounded_mean.detach(), 0.0)
    return nll + torch.where(log_mean > 0, theta, -x) * beyond


def some_count(x):
    """x where it is positive, 1 for a zero, which has a formula of its own, and NaN otherwise."""
    return torch.where(x > 0, x, torch.where(x == 0, 1.0, torch.nan))


def count_constant(x, log_x):
    """log x! - x log x + x, for log x! = log Gamma(x + 1)."""
    least = least_of_series(x)
    many = x >= least
    few = torch.where(many, 1.0, x)
    series = stirling_series(torch.where(many, x, least)) + 0.5 * (log_x + LOG_2PI)
    return torch.where(many, series, torch.lgamma(few + 1) - few * (torch.log(few) - 1))


def least_of_series(x):
    return 16.0 if x.dtype == torch.float64 else 1.0


def stirling_series(x):
    """log x! - (x + 1/2) log x + x - log(2 pi) / 2 for x >= 16 by Stirling's series.

    In float32 for x >= 1 by a Chebyshev fit, with relative error 5e-8.
    """
    if x.dtype != torch.float64:
        s, series = 1 / x, torch.zeros_like(x)
        for coefficient in STIRLING_FIT:
            series = series * s + coefficient
        return series * s
    q = 1 / (x * x)
    series = 1 / 1260 - q * (1 / 1680 - q * (1 / 1188 - q * (691 / 360360 - q / 156)))
    return (1 / 12 - q * (1 / 360 - q * series)) / x


def deviance(t, log_u):
    """t - log(1 + t), never negative, from t and log(1 + t).

    Near t = 0, where the difference cancels, log(1 + t) is twice the atanh of v = t / (2 + t).
    """
    near = close_to_zero(t)
    v = torch.where(near, t, 0.0)
    v = v / (2 + v)
    q = v * v
    series = torch.zeros_like(q)
    for n in range(17 if t.dtype == torch.float64 else 8, -1, -1):
        series = series * q + 1 / (2 * n + 3)
    return torch.where(near, v * (t - 2 * q * series), t - log_u)


def close_to_zero(t):
    return (t - 0.25).abs() <= 0.75


class Deviance(torch.autograd.Function):
    """The function above with its derivative t / (1 + t), in reverse mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t, log_u):
        return deviance(t, log_u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def slopes(t):
        """In t and in log(1 + t); which of the two has it makes no difference to a caller."""
        near = close_to_zero(t)
        slope = torch.where(near, t, 0.0) / (1 + torch.where(near, t, 0.0))
        return torch.where(near, slope, 1.0), torch.where(near, 0.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        of_t, of_log = Deviance.slopes(*ctx.saved_tensors)
        return grad * of_t, grad * of_log


class DevianceInBothModes(Deviance):
    """The same in forward mode too."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx, t_tangent, log_tangent):
        of_t, of_log = Deviance.slopes(*ctx.saved_tensors)
        return t_tangent * of_t + log_tangent * of_log


def differentiable_deviance(t, log_u):
    # torch.compile takes no autograd function with a derivative in forward mode.
    function = Deviance if torch.compiler.is_compiling() else DevianceInBothModes
    return function.apply(t, log_u)


def discretized_logistic_log_probs(x, mean, log_scale, half_bin, right_edge=0.999, guard=0.0):
    """log [sigmoid((x + h - mean) / s) - sigmoid((x - h - mean) / s)], elementwise.

    Of the first bin, x < -0.999, and the last, x > right_edge, the outer sigmoid is 0 or 1
    (Salimans et al., "PixelCNN++", ICLR 2017, eq. 2). With a - b = 2 h / s the difference is
    sigmoid(a) sigmoid(-b) (1 - exp(b - a)). A bin whose probability is below ``guard`` counts
    with the density in its middle, as their code has it for 1e-5.
    """
    root = torch.exp(-log_scale)
    above, below = root * (x - mean + half_bin), root * (x - mean - half_bin)
    not_above, not_below = F.logsigmoid(above), F.logsigmoid(-below)
    inside = not_above + not_below + log_of_width(2 * half_bin * root, log_scale, half_bin)
    if guard > 0:
        middle = root * (x - mean)
        density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale + math.log(2 * half_bin)
        inside = torch.where(inside < math.log(guard), density, inside)
    inside = torch.where(x > right_edge, not_below, inside)
    return torch.where(x < -0.999, not_above, inside)


def log_of_width(width, log_scale, half_bin):
    """log(1 - exp -width) for the width 2 half_bin exp(-log_scale), of small ones by its series."""
    small = width < 1e-3
    near, far = torch.where(small, width, 0.0), torch.where(small, 1.0, width)
    series = math.log(2 * half_bin) - log_scale - near / 2 + near * near / 24
    return torch.where(small, series, torch.log(-torch.expm1(-far)))


def discretized_mix_logistic_log_probs(params, x, half_bin, right_edge=0.999, guard=0.0):
    """(log w_k, log p_k of the pixels [B, K, P]) of params [B, 10 K, P] and RGB x [B, 3, P].

    Of the 10 K numbers the first K are logits of w; then for each color K means, K log scales, of
    no less than -7, and K coefficients before their tanh. The mean of green is shifted by the first
    times red, that of blue by the second times red and the third times green (eq. 3 there). Grey x
    [B, 1, P] has params [B, 3 K, P], without coefficients.
    """
    channels = x.shape[1]
    each = 3 if channels == 3 else 2
    mixtures = params.shape[1] // (1 + channels * each)
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    means, log_scales, *raw = rest.unflatten(1, (channels, each, mixtures)).unbind(2)
    if channels == 3:
        a = torch.tanh(raw[0])
        red, green, _ = x.unsqueeze(2).unbind(1)
        shifts = torch.zeros_like(a[:, 0]), a[:, 0] * red, a[:, 1] * red + a[:, 2] * green
        means = means + torch.stack(shifts, 1)
    log_probs = discretized_logistic_log_probs(
        x.unsqueeze(2),
        means,
        log_scales.clamp(min=-7.0),
        half_bin,
        right_edge,
        guard,
    )
    return torch.log_softmax(logits, 1), log_probs.sum(1)


def gaussian_kl(mu, logvar, prior_mu=None, prior_logvar=None):
    """KL(N(mu, exp logvar) || N(prior_mu, exp prior_logvar)), summed over the last dimension.

    1/2 sum_d [mu_d^2 + exp(logvar_d) - 1 - logvar_d]   (K&W, appendix B) for the standard
    prior, which None means; in general with d = logvar - prior_logvar,
    1/2 sum_d [(mu_d - prior_mu_d)^2 exp(-prior_logvar_d) + exp(d_d) - 1 - d_d].
    """
    if prior_mu is not None:
        mu = mu - prior_mu
    if prior_logvar is not None:
        mu = mu * torch.exp(-0.5 * prior_logvar)
        logvar = logvar - prior_logvar
    return 0.5 * (mu.square() + expm1_minus(logvar)).sum(-1)


def expm1_minus(a):
    """exp(a) - 1 - a, accurate near zero, and never negative: what variances add to the KL.

    There expm1(a) - a cancels, and so does its gradient, (expm1(a) + 1) - 1: in float32 the two
    are off by a quarter and a fifth at a = 1e-6.
    """
    # The compiler can look into no jvp.
    return (Expm1MinusCompiled if torch.compiler.is_compiling() else Expm1Minus).apply(a)


def expm1_series(a):
    """Taylor's series for |a| < 1/2; beyond, the difference loses no more than two bits.

    A compiler makes one exp, a polynomial and a select of it: less than an accurate expm1.
    """
    return torch.where(a.abs() < 0.5, near_zero(a), torch.exp(a) - 1 - a)


def near_zero(a):
    """The series of exp(a) - 1 - a, summed in pairs of terms to keep the chain of adds short."""
    square = a * a
    last = 15 if a.dtype == torch.float64 else 9
    term = [1 / math.factorial(n) for n in range(last + 1)]
    pairs = [a * term[n + 1] + term[n] for n in range(2, last, 2)]
    series = pairs.pop()
    while pairs:
        series = series * square + pairs.pop()
    return series * square


class Expm1MinusCompiled(torch.autograd.Function):
    """The series; its derivative, expm1(a), is made of the series again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        return expm1_series(a)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (a,) = ctx.saved_tensors
        return grad * torch.where(a.abs() < 0.5, a + near_zero(a), torch.exp(a) - 1)


class Expm1Minus(torch.autograd.Function):
    """The series, and expm1(a) for its derivative, in reverse and in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a):
        return expm1_series(a)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.expm1(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * torch.expm1(*ctx.saved_tensors)


def gaussian_entropy(logvar):
    """H[N(mu, exp logvar)] = 1/2 sum_d [logvar_d + log 2 pi + 1], over the last dimension."""
    return 0.5 * (logvar + (LOG_2PI + 1)).sum(-1)


def gaussian_sample(mu, logvar, eps):
    """z = mu + exp(logvar / 2) * eps, eps ~ N(0, I): the reparameterisation (K&W, eq. 10)."""
    return mu + torch.exp(0.5 * logvar) * eps
