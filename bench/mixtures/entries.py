"""The losses that compare every sample with every component.

A block an operation: what everyone runs, and its entry. "compile-chunked" is a loop over parts of
the batch that a careful user writes around the compiled textbook.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily

import fused_elbo

from ..harness import functions
from ..harness.cases import DIRECTIONS
from ..harness.operation import ENCODED, LATENT, LOGVAR, Operation
from ..harness.traffic import ITEM
from ..operations.entries import normal
from . import exact
from .cases import pairs

LOG_2PI = math.log(2 * math.pi)
COMPONENTS = ("components", "latent")
DATASET_SIZE = 50_000  # N, of which a batch is a part
# Elements of a part: 8 MiB, which a CPU's caches hold; fewer rows are more calls. On a GPU many.
PART = {"cpu": 2**21, "cuda": 2**26}
ENTRIES = {}


def floor(case):
    """Rows and components read and results written; for training all read again and gradients
    written, those of results read."""
    operation = ENTRIES[case.op]
    elements = sum(
        case.latent * (case.samples if given.dims == COMPONENTS else case.batch)
        for given in operation.inputs.values()
    )
    results = len(operation.outputs) * case.batch
    return ITEM[case.dtype] * (3 * elements + 2 * results if case.backward else elements + results)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pairwise(Operation):
    tensors: dict  # how many of size [B, K, D] a provider holds at once, backward; measured
    floor: Callable = floor
    memory_of_small: bool = True
    directions: tuple = DIRECTIONS[:1]

    def needed(self, case):
        """Bytes that a case takes by this count; what has none takes little."""
        return self.tensors.get(case.provider, 0) * ITEM[case.dtype] * pairs(case)


def in_parts(function, rows, components):
    """The function of a part of the rows at a time, of all components."""
    size = max(1, PART[rows[0].device.type] // components[0].numel())
    parts = zip(*(t.split(size) for t in rows), strict=True)
    found = [functions.symbolic(function)(*part, *components) for part in parts]
    if isinstance(found[0], tuple):
        return tuple(map(torch.cat, zip(*found, strict=True)))
    return torch.cat(found)


def count(rows):
    """A tensor: with math.log the compiler would compile anew for every number."""
    return rows.new_full((), len(rows))


def eager_mixture(z, mu, logvar):
    residual = (z.unsqueeze(1) - mu) * torch.exp(-0.5 * logvar)
    log_densities = -0.5 * (residual.square().sum(-1) + (logvar + LOG_2PI).sum(-1))
    return torch.logsumexp(log_densities, 1) - count(mu).log()


def distributions_mixture(z, mu, logvar):
    weights = Categorical(logits=mu.new_zeros(len(mu)), validate_args=False)
    components = Independent(normal(mu, logvar), 1, validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False).log_prob(z)


def chunked_mixture(z, mu, logvar):
    return in_parts(eager_mixture, (z,), (mu, logvar))


# A mixture prior of K components, such as a VampPrior.
ENTRIES["mixture_log_prob"] = Pairwise(
    inputs={
        "z": LATENT,
        "mu": LATENT._replace(dims=COMPONENTS),
        "logvar": LOGVAR._replace(dims=COMPONENTS),
    },
    providers={
        "eager": eager_mixture,
        "distributions": distributions_mixture,
        "compile-chunked": chunked_mixture,
        "fused_elbo": fused_elbo.mixture_log_prob,
    },
    exact=exact.mixture,
    tensors={"eager": 5.02, "distributions": 6.02, "compile": 1.02},
    directions=DIRECTIONS,
)


def log_density(z, mu, logvar):
    residual = (z - mu) * torch.exp(-0.5 * logvar)
    return -0.5 * (residual.square() + logvar + LOG_2PI)


def three_terms(z, mu, logvar, joint, marginals):
    own, zero = log_density(z, mu, logvar).sum(-1), z.new_zeros(())
    return own - joint, joint - marginals, marginals - log_density(z, zero, zero).sum(-1)


def eager_aggregate(z, mu, logvar, all_mu, all_logvar):
    log_densities = log_density(z.unsqueeze(1), all_mu, all_logvar)
    log_size = count(all_mu).log()
    joint = torch.logsumexp(log_densities.sum(-1), 1) - log_size
    marginals = (torch.logsumexp(log_densities, 1) - log_size).sum(-1)
    return three_terms(z, mu, logvar, joint, marginals)


def chunked_aggregate(z, mu, logvar, all_mu, all_logvar):
    return in_parts(eager_aggregate, (z, mu, logvar), (all_mu, all_logvar))


def fused_aggregate(z, mu, logvar, *dataset):
    return tuple(fused_elbo.kl_decomposition(z, mu, logvar, estimator="aggregate", dataset=dataset))


# A batch against a whole data set: the exact total correlation.
ENTRIES["kl_aggregate"] = Pairwise(
    inputs={
        "z": LATENT,
        **ENCODED,
        "all_mu": LATENT._replace(dims=COMPONENTS),
        "all_logvar": LOGVAR._replace(dims=COMPONENTS),
    },
    outputs=("rows",) * 3,
    providers={
        "eager": eager_aggregate,
        "compile-chunked": chunked_aggregate,
        "fused_elbo": fused_aggregate,
    },
    exact=exact.aggregate,
    tensors={"eager": 6.03, "compile": 1.03},
)


def stratified_log_weights(z):
    """log W_ij: 1/N for i's own posterior, (N - M) / (N M) for the next, 1/M for others."""
    batch, size, others = len(z), DATASET_SIZE, count(z) - 1
    rows = torch.arange(batch, device=z.device)
    weights = -others.log().expand(batch, batch).clone()
    weights[rows, rows] = -math.log(size)
    weights[rows, (rows + 1) % batch] = ((size - others) / (size * others)).log()
    return weights


def weighted_terms(z, mu, logvar, log_weights, all_mu, all_logvar):
    log_densities = log_density(z.unsqueeze(1), all_mu, all_logvar)
    joint = torch.logsumexp(log_densities.sum(-1) + log_weights, 1)
    marginals = torch.logsumexp(log_densities + log_weights.unsqueeze(-1), 1).sum(-1)
    return three_terms(z, mu, logvar, joint, marginals)


def eager_stratified(z, mu, logvar):
    return weighted_terms(z, mu, logvar, stratified_log_weights(z), mu, logvar)


def chunked_stratified(z, mu, logvar):
    return in_parts(weighted_terms, (z, mu, logvar, stratified_log_weights(z)), (mu, logvar))


def fused_stratified(z, mu, logvar):
    return tuple(fused_elbo.kl_decomposition(z, mu, logvar, DATASET_SIZE))


# A batch against itself: the KL of a beta-TCVAE in its three terms.
ENTRIES["kl_stratified"] = Pairwise(
    inputs={"z": LATENT, **ENCODED},
    outputs=("rows",) * 3,
    providers={
        "eager": eager_stratified,
        "compile-chunked": chunked_stratified,
        "fused_elbo": fused_stratified,
    },
    exact=functools.partial(exact.stratified, dataset_size=DATASET_SIZE),
    tensors={"eager": 6.03, "compile": 1.03},
)
