"""The figures of the quality suite: bias, variance, signal-to-noise ratio, effective samples.

On the linear-Gaussian model x ~ N(W z + b, sigma^2 I), whose posterior is not diagonal. All
gradients are those of one example's bound: in the model's weight W, and in the encoder's
outputs mu and logvar. Estimates are in float32, as in training; sums over replicates and the
exact answers in float64.
"""

import contextlib
import functools
import math
from typing import NamedTuple

import torch

from fused_elbo.estimators import diagnostics, models
from fused_elbo.estimators.bounds import estimate
from fused_elbo.estimators.diagnostics import Sums, mean_variance, signal_to_noise, with_error

from . import cases
from .entries import ENTRIES
from .exact import Exact

F64 = torch.float64
NOISE_VARIANCE = 1.0
# Elements of [K, pairs, D + P] at once: what a core's cache holds, or what fills a GPU. It takes
# part in saying which noise is drawn.
CHUNK = {"cpu": 2**18, "cuda": 2**24}
# An SNR past this says how float32 rounds: antithetic pairs leave mu's gradient no variance at
# all here, where the log-likelihood is quadratic.
ROUNDING = 1e4


class Problem(NamedTuple):
    """Examples x [B, P], the model's weight [P, D] and bias, q's mu, logvar [B, D]: float64."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    mu: torch.Tensor
    logvar: torch.Tensor

    def model(self):
        return models.LinearGaussianModel(self.weight, self.bias, NOISE_VARIANCE)

    def q(self):
        return models.DiagonalGaussian(self.mu, self.logvar)


@functools.lru_cache(maxsize=4)
def problem(distance, latent):
    """The same for all estimators and all K, and its exact answers."""
    generator = torch.Generator().manual_seed(100 + latent)
    pixels = cases.pixels(latent)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    weight = math.sqrt(1.5 / pixels) * normal(pixels, latent)
    bias = normal(pixels)
    model = models.LinearGaussianModel(weight, bias, NOISE_VARIANCE)
    z = normal(cases.EXAMPLES, latent)
    x = z @ weight.mT + bias + math.sqrt(NOISE_VARIANCE) * normal(len(z), pixels)
    best = model.optimal_diagonal(x)
    deviation = model.posterior(x).covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    mu = best.mu + abs(distance) * deviation * normal(*z.shape)
    made = Problem(x, weight, bias, mu, best.logvar + distance)
    return made, Exact(model, x, made.q())


def gradients(entry, samples, leaves, x, bias, generator):
    """One call: the estimate, and its gradients in the leaves (mu, logvar, weight).

    ``mu``, ``logvar`` [N, D] and x [N, P]; ``weight`` [N, P, D], one per pair, or [P, D].
    """
    mu, logvar, weight = leaves
    model = models.LinearGaussianModel(weight, bias, NOISE_VARIANCE)
    options = dict(entry.options)
    if entry.grouped:
        options["groups"] = cases.groups(samples)

    def pairwise(z):  # [K, N, D]: a matrix product per pair, not per sample
        return model.log_likelihood(x.unsqueeze(1), z.transpose(0, 1)).transpose(0, 1)

    def shared(z):
        return model.log_likelihood(x, z)

    target = shared if weight.dim() == 2 else pairwise
    result = estimate(
        entry.name, mu, logvar, samples, log_likelihood=target, generator=generator, **options
    )
    return result, torch.autograd.grad(result.surrogate.sum(), leaves)


@contextlib.contextmanager
def one_thread():
    """Chunks fit a cache, and threads that meet after each operation gain nothing on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def replicate(entry, samples, made, count, seed, device="cpu"):
    """Sums of the value and of the effective sample size [EXAMPLES], and of both gradients.

    A replicate is one estimate for each example, all from independent noise. ``seed`` alone
    says which noise: every estimator meets the same.
    """
    generator = torch.Generator(device).manual_seed(seed)
    x, weight, bias, mu, logvar = (t.to(device, torch.float32) for t in made)
    examples = len(x)
    each = samples * examples * (mu.shape[1] + x.shape[1])
    sums = {name: Sums(cases.BLOCKS) for name in ("value", "ess", *cases.PARTS)}
    done = 0
    while done < count:
        size = min(max(CHUNK[device] // each, 1), count - done)
        index = torch.arange(done, done + size) * cases.BLOCKS // count
        done += size
        leaves = [
            t.repeat(size, 1).requires_grad_() for t in (mu, logvar)
        ] + [weight.expand(size * examples, -1, -1).clone().requires_grad_()]  # fmt: skip
        result, (d_mu, d_logvar, d_weight) = gradients(
            entry, samples, leaves, x.repeat(size, 1), bias, generator
        )
        ess = diagnostics.effective_sample_size(result.log_weights)
        parts = {
            "value": result.value,
            "ess": ess,
            "encoder": torch.cat([d_mu, d_logvar], -1),
            "model": d_weight,
        }
        for name, values in parts.items():
            sums[name].add(values.reshape(size, -1).cpu(), index)
    return sums


def bias(sums, exact):
    """(bias, its standard error) in nats, the mean over examples; (None, None) if infinite."""
    mean, variance = sums.moments(torch.full((1, sums.blocks), 1 / sums.blocks, dtype=F64))
    error = (variance / sums.count).sum().sqrt().item() / variance.shape[1]
    difference = (mean.squeeze(0) - exact).mean().item()
    return (difference, error) if math.isfinite(difference) else (None, None)


def measure(estimator, samples, distance, latent, grid, device="cpu"):
    """The fields of a case in the JSON, except its time and memory."""
    entry = ENTRIES[estimator]
    made, exact = problem(distance, latent)
    count = cases.replicates(grid, estimator, samples, distance, latent)
    sums = replicate(entry, samples, made, count, seed=samples, device=device)
    bound = exact.bound(entry.bound, samples, cases.groups(samples))
    info = {
        "replicates": count,
        "log_evidence": exact.evidence.mean().item(),
        "exact_elbo": exact.elbo.mean().item(),
        "exact_bound": bound.mean().item() if bound.isfinite().all() else None,
        "kl_posterior": exact.kl.mean().item(),
        "efficiency": exact.efficiency.mean().item(),
    }
    info["bias"], info["bias_error"] = bias(sums["value"], bound)
    gap, info["gap_error"] = bias(sums["value"], exact.evidence)
    info["gap"] = -gap
    info["ess"], info["ess_error"] = bias(sums["ess"], torch.zeros(len(bound)))
    for part in cases.PARTS:
        variance, variance_error = with_error(mean_variance, sums[part])
        info[f"{part}_variance"], info[f"{part}_variance_error"] = variance, variance_error
        snr, snr_error = with_error(signal_to_noise, sums[part])
        known = snr < ROUNDING
        info[f"{part}_snr"], info[f"{part}_snr_error"] = (snr, snr_error) if known else (None, None)
    return info


class Step:
    """The call that is timed: BATCH examples and one weight, as in a training step."""

    def __init__(self, estimator, samples, distance, latent, device="cpu"):
        self.entry, self.samples = ENTRIES[estimator], samples
        made, _ = problem(distance, latent)
        x, weight, self.bias, mu, logvar = (t.to(device, torch.float32) for t in made)
        times = cases.BATCH // len(x)
        self.x = x.repeat(times, 1)
        self.leaves = [t.repeat(times, 1).requires_grad_() for t in (mu, logvar)]
        self.leaves.append(weight.clone().requires_grad_())
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, leaves=None):
        leaves = self.leaves if leaves is None else leaves
        gradients(self.entry, self.samples, leaves, self.x, self.bias, self.generator)


def time_to_snr(seconds, quartiles, rounds, snr, snr_error):
    """Seconds an example until the mean of n independent gradients has an SNR of 1.

    n = 1 / SNR^2, for averaging n multiplies the SNR by sqrt(n). With its standard error, to
    first order, from the SNR's and the median time's. None where the SNR is not two standard
    errors from 0.
    """
    if snr is None or not snr > 2 * snr_error:
        return None, None
    value = seconds / cases.BATCH / snr**2
    # The median of normal rounds: 1.253 sigma / sqrt(n), with 1.349 sigma between quartiles.
    relative = 1.253 * (quartiles[1] - quartiles[0]) / 1.349 / math.sqrt(rounds) / seconds
    return value, value * math.hypot(2 * snr_error / snr, relative)
