"""The exact bounds that the quality suite holds the estimators against, in float64.

The expectation of IWAE's bound, L_K = E log (1/K) sum_k w_k, is K D-dimensional; yet here it
comes from two integrals over a line, whatever K and D. With Frullani's

    log s = int_0^inf (exp(-t) - exp(-t s)) / t dt,

E log sum_k w_k needs phi(t) = E exp(-t w) only, since the expectation of exp(-t sum_k w_k)
is phi(t)^K. And by Mellin's inversion of exp,

    phi(t) = 1/(2 pi i) int_(c - i inf)^(c + i inf) Gamma(s) t^(-s) E w^(-s) ds,

where log w is a quadratic form of a normal vector, so that E w^(-s) is in closed form. Gamma
falls as exp(-pi |Im s| / 2): the trapezoidal rule converges exponentially.
"""

import math

import numpy as np
import torch

from fused_elbo.estimators import models

LANCZOS = (  # g = 7, n = 9: Godfrey's coefficients, good to 1e-15 for Re s > 0
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
    -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
    1.5056327351493116e-7,
)  # fmt: skip


class Exact:
    """Every bound that the sweep's estimators estimate, of a q for the examples x."""

    def __init__(self, model, x, q):
        posterior, full = model.posterior(x), models.as_full(q)
        self.evidence, self.elbo = model.log_evidence(x), model.elbo(x, q)
        self.kl = models.kl_divergence(full, posterior)
        # The share of effective samples as K grows; 0 where the weights' variance is infinite.
        self.efficiency = 1 / (1 + models.chi_square_divergence(posterior, full))
        self.renyi = self.evidence - models.renyi_divergence(full, posterior, 0.5)
        self.cubo = self.evidence - models.renyi_divergence(full, posterior, -1.0)
        self.transforms = [transform(*form) for form in quadratic_forms(model, x, q)]

    def iwae(self, samples):
        """L_K at each example."""
        return torch.tensor([log_mean(*t, samples) for t in self.transforms]).double()

    def bound(self, name, samples, groups):
        """The bound of a name in the entries: [B], in nats."""
        if name == "iwae":
            return self.iwae(samples)
        if name == "miwae":
            return self.iwae(samples // groups)
        if name == "ciwae":
            return 0.5 * self.elbo + 0.5 * self.iwae(samples)
        return getattr(self, name)


def quadratic_forms(model, x, q):
    """log w = a + b' e - 1/2 sum_i l_i e_i^2 with e ~ N(0, I): (a, b, l) for each example.

    By Bayes' rule log w = log p(x) + log p(z|x) - log q(z); with z = mu + S e and the
    posterior's precision L the quadratic term is S L S - I, turned to its own axes.
    """
    posterior, scale = model.posterior(x), (0.5 * q.logvar).exp()
    evidence = model.log_evidence(x)
    for i in range(len(x)):
        precision = torch.linalg.inv(posterior.covariance[i])
        half = scale[i].unsqueeze(-1) * precision
        values, axes = torch.linalg.eigh(half * scale[i] - torch.eye(len(precision)).double())
        offset = q.mu[i] - posterior.mean[i]
        at_mean = models.gaussian_log_prob(
            q.mu[i], models.Gaussian(posterior.mean[i], posterior.covariance[i])
        )
        log_q = -0.5 * (q.logvar[i] + math.log(2 * math.pi)).sum()
        yield evidence[i] + at_mean - log_q, -(axes.mT @ half @ offset), values


def transform(a, b, values, step=0.25):
    """phi(t) = E exp(-t w) for log w = a + b' e - 1/2 sum_i values_i e_i^2.

    Returns (centre, r, phi): phi at t = exp(r - centre), the centre being E log w.
    """
    b, values = b.numpy(), values.numpy()
    centre = float(a) - 0.5 * values.sum()
    spread = math.sqrt((b**2).sum() + 0.5 * (values**2).sum())
    # Far enough for phi to reach 1 on the left, where the largest weights count, and 0 on the
    # right: a normal tail, and those of -values_i e_i^2 / 2.
    far = 38.0 + 9 * spread + 36 * np.maximum([-values.min(), values.max()], 0.0)
    left, right = -np.arange(step, far[0], step)[::-1], np.arange(0.0, far[1], step)
    # Near the axis E w^(-s) is near 1, and digits are not lost. To its left the pole of Gamma
    # at 0 has been passed, whose residue is 1: that gives phi - 1 without cancellation.
    c = min(0.5, 2 / max(spread, 1e-9), 0.5 / max(values.max(), 1e-9))
    phi_right = inversion(c, right, b, values, centre - float(a))
    c = -min(0.5, 2 / max(spread, 1e-9))
    phi_left = 1 + inversion(c, left, b, values, centre - float(a))
    phi = np.clip(np.concatenate([phi_left, phi_right]), 0.0, 1.0)
    return centre, np.arange(len(phi)) * step + left[0], phi


def inversion(c, r, b, values, centre):
    """1/(2 pi i) int Gamma(s) exp(-r s) E (w / exp(centre))^(-s) ds over c + i y."""
    # The trapezoidal rule repeats its result with this period, each time exp(-|c| period) smaller.
    period = max(40 / abs(c), 1.2 * len(r) * abs(r[1] - r[0]))
    y = np.arange(0.0, 24.0, 2 * math.pi / period)
    s = c + 1j * y
    log_terms = log_gamma(s + 1) - np.log(s) + s * centre
    for slope, value in zip(b, values, strict=True):
        log_terms += 0.5 * (s * slope) ** 2 / (1 - s * value) - 0.5 * np.log(1 - s * value)
    weights = np.where(y == 0, 1.0, 2.0) / period  # of y and -y, which are conjugate
    return np.exp(log_terms - np.outer(r, s)).real @ weights


def log_mean(centre, r, phi, samples):
    """L_K = E log (1/K) sum_k w_k, by Frullani's integral over log t."""
    with np.errstate(over="ignore"):
        difference = np.exp(-np.exp(r)) - phi**samples
    return centre - math.log(samples) + (r[1] - r[0]) * difference.sum()


def log_gamma(s):
    """log Gamma of complex numbers with positive real parts (Lanczos)."""
    s = s - 1
    series = LANCZOS[0] + sum(p / (s + i) for i, p in enumerate(LANCZOS[1:], 1))
    t = s + 7.5
    return 0.5 * math.log(2 * math.pi) + (s + 0.5) * np.log(t) - t + np.log(series)
