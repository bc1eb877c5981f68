"""The KL in three terms: differences of log-densities, each by the kernels of its family."""

import math

import torch

from ..rows import upstream_of_log_probs
from .gaussian_nll import gaussian_nll, gaussian_nll_backward
from .marginals_log_prob import marginals_log_prob, marginals_log_prob_backward
from .mixture_log_prob import mixture_log_prob, mixture_log_prob_backward


def kl_decomposition(z, mu, logvar, all_mu, all_logvar, dataset_size):
    """[the terms, each [rows], what backward needs of the densities [cols + 1, rows]]."""
    components = (mu, logvar) if all_mu is None else (all_mu, all_logvar)
    joint, of_all = mixture_log_prob(z, *components, None, dataset_size)
    marginals, of_each = marginals_log_prob(z, *components, dataset_size)
    own = gaussian_nll(mu, z, logvar, 0.0, -1)
    squares = z.to(joint.dtype).square().sum(1)
    prior = -0.5 * (squares + z.shape[1] * math.log(2 * math.pi))
    logsumexp = torch.cat([of_each, of_all[None]])
    return [own - joint, joint - marginals, marginals - prior, logsumexp]


def kl_decomposition_backward(
    dmutual_information, dtotal_correlation, ddimension_wise, z, mu, logvar, all_mu, all_logvar,
    dataset_size, logsumexp, needs,
):  # fmt: skip
    """The wanted gradients, from those of the terms, each [rows] or None."""
    given = dmutual_information, dtotal_correlation, ddimension_wise
    down, djoint, dmarginals, dprior = upstream_of_log_probs(*given)
    q, of_batch = (mu, logvar), all_mu is None
    components = q if of_batch else (all_mu, all_logvar)
    of_pairs = [needs[0], *(needs[1:3] if of_batch else needs[3:])]
    found = [0.0] * 5

    def add(gradients, positions):
        for position, gradient in zip(positions, gradients, strict=True):
            found[position] = found[position] + gradient

    def wanted(needs, positions):
        return [p for p, needed in zip(positions, needs, strict=True) if needed]

    latents = (0, 1, 2) if of_batch else (0, 3, 4)
    if any(of_pairs):
        options = None, dataset_size, logsumexp[-1], [*of_pairs, False]
        joint = mixture_log_prob_backward(djoint, z, *components, *options)
        add(joint, wanted(of_pairs, latents))
        options = dataset_size, logsumexp[:-1], of_pairs
        marginals = marginals_log_prob_backward(dmarginals, z, *components, *options)
        add(marginals, wanted(of_pairs, latents))
    of_q = [needs[1], needs[0], needs[2]]
    if any(of_q):
        own = gaussian_nll_backward(down, mu, z, logvar, 0.0, -1, of_q)
        add(own, wanted(of_q, (1, 0, 2)))
    if needs[0]:
        found[0] = found[0] - (dprior[:, None] * z).to(z.dtype)
    return [gradient for gradient, needed in zip(found, needs, strict=True) if needed]
