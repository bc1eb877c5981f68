"""The likelihoods of counts of which nine in ten are 0, as of genes in a cell.

A block a likelihood: what everyone runs, and its entry. The textbook of negative binomials is
scvi-tools', with its epsilon and its log-gamma functions. Pyro is imported where it is run: that
changes the defaults of torch.distributions.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch.distributions import Multinomial, NegativeBinomial

import fused_elbo

from ..drop_ins.scvi import LOST_DIGITS, original_log_nb, original_log_zinb
from ..harness import oracle, traffic
from ..harness.operation import (
    COLUMNS,
    LATENT,
    ROWS,
    SPARSE_COUNTS,
    Input,
    Operation,
)

ENTRIES = {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Likelihood(Operation):
    memory_of_small: bool = True
    tolerance: dict = dataclasses.field(default_factory=LOST_DIGITS.copy)


def eager_negative_binomial(log_mean, log_theta, x):
    return -original_log_nb(x, log_mean.exp(), log_theta.exp()).sum(-1)


def distributions_negative_binomial(log_mean, log_theta, x):
    logits = log_mean - log_theta
    nb = NegativeBinomial(log_theta.exp(), logits=logits, validate_args=False)
    return -nb.log_prob(x).sum(-1)


def pyro_negative_binomial(log_mean, log_theta, x):
    from pyro.distributions import GammaPoisson

    rate = torch.exp(log_theta - log_mean)
    return -GammaPoisson(log_theta.exp(), rate, validate_args=False).log_prob(x).sum(-1)


def fused_negative_binomial(log_mean, log_theta, x):
    return fused_elbo.negative_binomial_nll(log_mean, x, log_theta)


# Negative binomial likelihood, with a dispersion per gene.
ENTRIES["negative_binomial_nll"] = Likelihood(
    inputs={"log_mean": LATENT, "log_theta": COLUMNS, "counts": SPARSE_COUNTS},
    providers={
        "eager": eager_negative_binomial,
        "distributions": distributions_negative_binomial,
        "pyro": pyro_negative_binomial,
        "fused_elbo": fused_negative_binomial,
    },
    exact=oracle.negative_binomial,
    floor=traffic.Floor(2, 3, columns=1),  # log means, x | log means, x -> dlog_means
)


def eager_zero_inflated(log_mean, log_theta, zero_logits, x):
    return -original_log_zinb(x, log_mean.exp(), log_theta.exp(), zero_logits).sum(-1)


def pyro_zero_inflated(log_mean, log_theta, zero_logits, x):
    from pyro.distributions import ZeroInflatedNegativeBinomial

    given = {"logits": log_mean - log_theta, "gate_logits": zero_logits}
    zinb = ZeroInflatedNegativeBinomial(log_theta.exp(), **given, validate_args=False)
    return -zinb.log_prob(x).sum(-1)


def fused_zero_inflated(log_mean, log_theta, zero_logits, x):
    return fused_elbo.negative_binomial_nll(log_mean, x, log_theta, zero_logits=zero_logits)


# The same with zeros of their own, which a logit per cell and gene adds.
ENTRIES["negative_binomial_nll_inflated"] = Likelihood(
    inputs={
        "log_mean": LATENT, "log_theta": COLUMNS, "zero_logits": LATENT, "counts": SPARSE_COUNTS,
    },
    providers={
        "eager": eager_zero_inflated,
        "pyro": pyro_zero_inflated,
        "fused_elbo": fused_zero_inflated,
    },
    exact=oracle.zero_inflated_negative_binomial,
    # log means, logits, x | the same -> dlog_means, dlogits
    floor=traffic.Floor(3, 5, columns=1),
)  # fmt: skip


def library_size(normal):
    """The logarithm of a cell's counts in all."""
    return 0.3 * normal + 7


def softmax_log_mean(logits, log_library):
    return logits.log_softmax(-1) + log_library.unsqueeze(-1)


def eager_softmax(logits, log_theta, log_library, x):
    mu = log_library.exp().unsqueeze(-1) * logits.softmax(-1)
    return -original_log_nb(x, mu, log_theta.exp()).sum(-1).mean()


def distributions_softmax(logits, log_theta, log_library, x):
    log_mean = softmax_log_mean(logits, log_library)
    return distributions_negative_binomial(log_mean, log_theta, x).mean()


def pyro_softmax(logits, log_theta, log_library, x):
    return pyro_negative_binomial(softmax_log_mean(logits, log_library), log_theta, x).mean()


def fused_softmax(logits, log_theta, log_library, x):
    given = logits, x, log_theta, log_library.unsqueeze(-1)
    return fused_elbo.softmax_negative_binomial_nll(*given, reduction="mean")


def exact_softmax(logits, log_theta, log_library, x):
    log_mean = softmax_log_mean(logits, log_library)
    return oracle.negative_binomial(log_mean, log_theta, x).mean()


def softmax_floor(case):
    """The gradient of a loss is one scalar, so that those of logits are written in the forward
    pass: logits and x read, dlogits written; dispersions and libraries beside them."""
    numbers = 3 * case.batch * case.latent + 2 * case.latent + case.batch
    return traffic.ITEM[case.dtype] * numbers


# From a decoder's logits, with means library * softmax: the likelihood of a whole step.
ENTRIES["softmax_negative_binomial_nll"] = Likelihood(
    inputs={
        "logits": LATENT, "log_theta": COLUMNS,
        "log_library": Input(ROWS, library_size, data=True), "counts": SPARSE_COUNTS,
    },
    outputs=("scalar",),
    providers={
        "eager": eager_softmax,
        "distributions": distributions_softmax,
        "pyro": pyro_softmax,
        "fused_elbo": fused_softmax,
    },
    exact=exact_softmax,
    floor=softmax_floor,
)  # fmt: skip


def multinomial_constant(x):
    return torch.lgamma(x + 1).sum(-1) - torch.lgamma(x.sum(-1) + 1)


def eager_multinomial(logits, x):
    return multinomial_constant(x) - (x * torch.log_softmax(logits, -1)).sum(-1)


def distributions_multinomial(logits, x):
    """Its density asks the counts themselves for their sum, and not ``total_count``."""
    return -Multinomial(logits=logits, validate_args=False).log_prob(x)


def builtin_multinomial(logits, x):
    return multinomial_constant(x) + F.cross_entropy(logits, x, reduction="none")


# Multinomial likelihood, as of a recommender.
ENTRIES["multinomial_nll"] = Likelihood(
    inputs={"logits": LATENT, "counts": SPARSE_COUNTS},
    providers={
        "eager": eager_multinomial,
        "distributions": distributions_multinomial,
        "builtin": builtin_multinomial,
        "fused_elbo": fused_elbo.multinomial_nll,
    },
    exact=oracle.multinomial,
    floor=traffic.Floor(2, 3),  # logits, x | logits, x -> dlogits
)
