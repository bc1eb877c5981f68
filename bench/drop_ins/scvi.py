"""The likelihoods of scvi-tools' models, of counts of which nine in ten are 0.

Summed over genes, as the models do with what the functions return for each count.
"""

import torch
import torch.nn.functional as F

from fused_elbo import compat

from ..harness import oracle, traffic
from ..harness.cases import FLOAT32, GENES
from ..harness.operation import TOLERANCE, Input, sparse_counts
from .drop_in import DropIn

EPS = 1e-8
CELLS = ("batch", "genes")
MEANS = {"mean": Input(CELLS, torch.exp), "dispersion": Input(("genes",), torch.exp)}
COUNTED = {"counts": Input(CELLS, sparse_counts, data=True)}
# The differences of the original's log-gamma functions lose digits: its gradient of a dispersion is
# off by up to 1e-3 of the largest, compiled.
LOST_DIGITS = {**TOLERANCE, "float32": 5e-3}
ENTRIES = {}


def original_log_nb(x, mu, theta):
    log_sum = torch.log(theta + mu + EPS)
    log_prob = theta * (torch.log(theta + EPS) - log_sum) + x * (torch.log(mu + EPS) - log_sum)
    return log_prob + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def original_log_zinb(x, mu, theta, pi):
    kept, log_sum = F.softplus(-pi), torch.log(theta + mu + EPS)
    zero = theta * (torch.log(theta + EPS) - log_sum) - pi
    of_zero = F.softplus(zero) - kept
    combinations = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    of_count = zero - kept + x * (torch.log(mu + EPS) - log_sum) + combinations
    return (x < EPS).float() * of_zero + (x > EPS).float() * of_count


def floor(tensors):
    """Means and logits, ``tensors`` of them, counts and dispersions read, and rows written; in the
    backward pass the same read, and gradients written."""

    def needed(case):
        of_cells = (3 * tensors + 2) * case.batch * GENES
        return traffic.ITEM[case.dtype] * (of_cells + 3 * GENES) + 2 * 4 * case.batch

    return needed


# Negative binomial of each count.
ENTRIES["scvi_log_nb_positive"] = DropIn(
    inputs=MEANS | COUNTED,
    outputs=("rows",),
    providers={
        "eager": lambda mu, theta, x: -original_log_nb(x, mu, theta).sum(-1),
        "fused_elbo": lambda mu, theta, x: -compat.scvi_log_nb_positive(x, mu, theta).sum(-1),
    },
    exact=lambda mu, theta, x: oracle.negative_binomial(mu.log(), theta.log(), x),
    floor=floor(1),
    dtypes=FLOAT32,
    most=1024,
    tolerance=LOST_DIGITS,
)


# The same, zero-inflated.
ENTRIES["scvi_log_zinb_positive"] = DropIn(
    inputs=MEANS | {"zero_logits": Input(CELLS)} | COUNTED,
    outputs=("rows",),
    providers={
        "eager": lambda mu, theta, pi, x: -original_log_zinb(x, mu, theta, pi).sum(-1),
        "fused_elbo": lambda mu, theta, pi, x: (
            -compat.scvi_log_zinb_positive(x, mu, theta, pi).sum(-1)
        ),
    },
    exact=lambda mu, theta, pi, x: oracle.zero_inflated_negative_binomial(
        mu.log(), theta.log(), pi, x
    ),
    floor=floor(2),
    dtypes=FLOAT32,
    most=1024,
    tolerance=LOST_DIGITS,
)
