"""The quality of an estimate, judged by its weights, posteriors and gradients."""

import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dispatch import validate
from .dispatch.types import Implementation
from .functional import gaussian_kl
from .reference.reference import effective_size, in_units_of_prior, normalised


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum_k w_k)^2 / sum_k w_k^2, of log weights [K, ...]: in [1, K], or 0 if all w_k are.

    Its share of K tends to 1 / (1 + chi^2(p(z|x) || q)). Kong, Liu & Wong 1994.

    >>> effective_sample_size(torch.zeros(10, 3))
    tensor([10.0000, 10.0000, 10.0000])
    """
    return effective_size(normalised(log_weights))


ON_CPU: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever the default device is
HAS_ARVIZ = importlib.util.find_spec("arviz_stats") is not None


def pareto_k(log_weights: Tensor) -> Tensor:
    """The shape k of the generalised Pareto tail of the weights [K, ...]: [...], by arviz-stats.

    Under 0.5 the weights have a finite variance, over 0.7 importance sampling with them is not
    to be trusted at any practical K. Infinite where a few weights are all of the sum, in float64;
    NaN where no tail can be fitted: K < 25, or weights that are equal, infinite or NaN.
    Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024.

    Raises RuntimeError without arviz-stats, which is for Python 3.11 and newer.
    """
    return pareto_smoothed(log_weights)[1]


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """(log of the mean of the Pareto-smoothed weights, k) of log weights [K, ...]: [...] each.

    The largest min(K / 5, 3 sqrt K) weights are replaced by quantiles of the Pareto tail that is
    fitted to them: an estimate of log p(x) with less variance than log mean w, and no bound. The
    fit is arviz-stats' (``psislw``). Where k is not finite the mean is that of the weights as they
    are. Vehtari et al., "Pareto smoothed importance sampling", JMLR 2024.
    """
    if not HAS_ARVIZ:
        raise RuntimeError(
            "Pareto smoothing needs arviz-stats, which is not installed: pip install arviz-stats "
            "(for Python 3.11 and newer)"
        )
    shape = log_weights.shape[1:]
    columns = log_weights.detach().cpu().double().reshape(len(log_weights), math.prod(shape)).T
    found = torch.tensor([_smoothed(c) for c in columns], **ON_CPU).view(-1, 2)
    mean, k = (column.view(shape).to(log_weights) for column in found.unbind(1))
    return mean, k


def _smoothed(log_weights):
    """(log mean, k) of [K]."""
    # A second to import, for scipy's sake: only by who asks for it.
    from arviz_stats.base import array_stats

    samples = len(log_weights)
    plain = (torch.logsumexp(log_weights, 0) - math.log(samples)).item()
    greatest = log_weights.max()
    if samples < 25 or not greatest.isfinite():
        return plain, math.nan
    tail = int(3 * samples**0.5 if samples > 225 else samples / 5)
    ordered = (log_weights - greatest).exp().sort().values[-tail - 1 :]
    if ordered[int(tail / 4 + 0.5)] == ordered[0] or ordered[1] == ordered[-1]:
        # psislw would divide by 0, and answer 1/6: too far apart for float64, or too many equal.
        return plain, math.inf if ordered[0] == 0 else math.nan
    smoothed, k = array_stats.psislw(-log_weights.numpy())
    # It normalises: most weights are as they were, but for the sum of the smoothed ones.
    total = torch.nanmedian(log_weights - torch.from_numpy(smoothed))
    return total.item() - math.log(samples), float(k)


def kl_per_dimension(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    impl: Implementation = "auto",
) -> Tensor:
    """KL(q_d || p_d) of each latent in nats, of their shape: a collapsed one is near zero.

    Arguments as in :func:`fused_elbo.gaussian_kl`, and its value with ``event_dims=0``.

    >>> kl_per_dimension(torch.tensor([1.0, 0.0]), torch.zeros(2), prior_mu=torch.ones(2))
    tensor([0.0000, 0.5000])
    """
    return gaussian_kl(mu, logvar, prior_mu, prior_logvar, event_dims=0, impl=impl)


def active_units(
    mu: Tensor,
    threshold: float = 0.01,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
) -> Tensor:
    """The latents in use: whether Var over the data of E_q[z_d] > threshold, a bool tensor [...].

    ``mu`` [N, ...] over a data set, in units of the prior where there is one: of (mu - prior_mu) /
    prior_std. ``prior_mu`` and ``prior_logvar`` broadcast to ``mu``, and may be of each example, as
    p(z|c) is; what a latent knows beyond its prior then counts. Burda et al. 2016, section 5.2,
    for the standard normal.

    >>> active_units(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    tensor([False,  True])
    """
    validate.tensors(mu=mu, prior_mu=prior_mu, prior_logvar=prior_logvar)
    if mu.dim() < 2 or mu.shape[0] < 2:
        raise ValueError(f"expected mu [N, ...] with N >= 2, got mu {tuple(mu.shape)}")
    validate.within(mu.shape, prior_mu=prior_mu, prior_logvar=prior_logvar)
    return in_units_of_prior(mu, prior_mu, prior_logvar).var(0) > threshold


class GradientNoise(NamedTuple):
    """Noise of a gradient, summarised over parameters, each number with its standard error."""

    variance: float  # the mean over parameters
    variance_error: float
    snr: float  # |mean| / standard deviation, the median over parameters
    snr_error: float


BLOCKS = 32  # of replicates: what the bootstrap draws from
RESAMPLES = 200


def gradient_noise(
    loss: Callable[[], Tensor], parameters: Iterable[Tensor], num_replicates: int = 320
) -> GradientNoise:
    """Variance and signal-to-noise ratio of a loss's gradient, from independent replicates.

    For a model of your own, what the quality suite measures of every estimator on exact ones: a
    gradient whose SNR is under 1 is mostly noise. Give the encoder's parameters and the decoder's
    in two calls: estimators differ in the former.

    Args:
        loss: draws anew at each call and returns a scalar of ``parameters``, as
            ``lambda: -estimate("dreg", *encoder(x), 64, ...).surrogate.mean()`` does; of one and
            the same x, or the variance is that of batches too.
        parameters: those whose gradients are measured, all of them in the loss; their ``.grad``
            stays as it is. The sums take 512 bytes a number.
        num_replicates: how many gradients, a multiple of 32, the blocks of the standard errors'
            bootstrap.

    Returns:
        :class:`GradientNoise`: floats. The variance is unbiased; the SNR's square is rid of what
        the noise of the mean adds to it, and 0 where nothing is left.

    Raises:
        ValueError: no parameters, one without gradient, a loss that is no scalar, or a number of
            replicates that is no multiple of 32.

    Rainforth et al., "Tighter variational bounds are not necessarily better", ICML 2018, eq. 7.

    >>> theta = torch.ones(3, requires_grad=True)
    >>> noise = gradient_noise(lambda: (theta * (2.0 + torch.randn(3))).sum(), [theta])
    >>> 0.5 < noise.variance < 2.0, 1.5 < noise.snr < 2.5
    (True, True)
    """
    parameters = list(parameters)
    validate.count("num_replicates", num_replicates)
    if num_replicates % BLOCKS:
        raise ValueError(f"num_replicates must be a multiple of {BLOCKS}, got {num_replicates}")
    if not parameters or not all(p.requires_grad for p in parameters):
        raise ValueError("parameters must be tensors that require gradients, at least one")
    sums = Sums(BLOCKS)
    for replicate in range(num_replicates):
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("loss() must return a tensor of one number")
        gradients = torch.autograd.grad(value, parameters)
        flat = torch.cat([g.reshape(1, -1).cpu() for g in gradients], 1)
        block = torch.tensor([replicate * BLOCKS // num_replicates], device="cpu")
        sums.add(flat, block)
    return GradientNoise(*with_error(mean_variance, sums), *with_error(signal_to_noise, sums))


class Sums:
    """Sums and sums of squares over the replicates of each block: [blocks, ...], float64."""

    def __init__(self, blocks: int):
        self.blocks, self.count = blocks, 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def add(self, values, index):
        """``values`` [R, n] of replicates whose blocks are ``index`` [R]."""
        values = values.double()
        empty = values.new_zeros(self.blocks, values.shape[1])
        self.first = self.first + empty.index_add(0, index, values)
        self.second = self.second + empty.index_add(0, index, values.square())
        self.count += len(values)

    def moments(self, shares):
        """Mean and variance [m, n] by m weightings of the blocks, [m, blocks] with rows of sum 1.

        Blocks are of one size.
        """
        first = shares @ self.first * (self.blocks / self.count)
        second = shares @ self.second * (self.blocks / self.count)
        variance = (second - first.square()).clamp(min=0.0) * self.count / (self.count - 1)
        return first, variance


def signal_to_noise(mean, variance, count):
    """|mean| / std of each parameter, then the median over parameters (the last dimension).

    The square of a mean of ``count`` replicates is too large by variance / count; without that
    it may be negative, and counts as 0.
    """
    square = (mean.square() - variance / count).clamp(min=0.0)
    ratio = torch.where(square > 0, square / variance, 0.0).sqrt()
    return ratio.quantile(0.5, dim=-1)


def mean_variance(_mean, variance, _count):
    """The mean over parameters of the variance."""
    return variance.mean(-1)


def with_error(statistic, sums):
    """A statistic of the moments, and its standard error by a bootstrap over blocks."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randint(sums.blocks, (RESAMPLES, sums.blocks), generator=generator, device="cpu")
    shares = torch.zeros(RESAMPLES, sums.blocks, **ON_CPU).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1 / sums.blocks, **ON_CPU)
    )
    even = torch.full((1, sums.blocks), 1 / sums.blocks, **ON_CPU)
    value = statistic(*sums.moments(even), sums.count)
    # One at a time: a model has more parameters than 200 copies of their moments leave room for.
    resampled = torch.cat([statistic(*sums.moments(s), sums.count) for s in shares.split(1)])
    return value.item(), resampled.std().item()
