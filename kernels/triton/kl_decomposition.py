"""The KL in three terms: differences of log densities, which the kernels of three families find."""

import math

import torch

from ..rows import accumulator
from .gaussian_nll import launch_gaussian_nll
from .marginals_log_prob import marginals_log_prob, marginals_log_prob_backward
from .mixture_log_prob import mixture_log_prob, mixture_log_prob_backward


def kl_decomposition(z, mu, logvar, all_mu, all_logvar, dataset_size):
    """The three terms, each [rows], then the log densities that backward needs [cols + 1, rows]."""
    components = (mu, logvar) if all_mu is None else (all_mu, all_logvar)
    joint, of_all = mixture_log_prob(z, *components, None, dataset_size)
    marginals, of_each = marginals_log_prob(z, *components, None, dataset_size)
    own = launch_gaussian_nll(mu, z, logvar, 0.0, -1, values="rows")[0]
    squares = z.to(own.dtype).square().sum(1)
    prior = -0.5 * (squares + z.shape[1] * math.log(2 * math.pi))
    acc = accumulator(z, mu, logvar, all_mu, all_logvar)
    logsumexp = torch.cat([of_each, of_all[None]])
    found = own - joint, joint - marginals, marginals - prior, logsumexp
    return [t.to(acc) for t in found]


def kl_decomposition_backward(
    dmi, dtc, ddimension_wise, z, mu, logvar, all_mu, all_logvar, dataset_size, logsumexp, needs
):
    """The wanted gradients, from those of the terms, each [rows] or None."""
    given = dmi, dtc, ddimension_wise
    some = next(t for t in given if t is not None)
    dmi, dtc, ddimension_wise = (torch.zeros_like(some) if t is None else t for t in given)
    found: dict[int, torch.Tensor] = {}  # by the position of an input

    def add(gradients, places):
        wanted = (place for place in places if needs[place])
        for place, gradient in zip(wanted, gradients, strict=True):
            found[place] = found[place] + gradient if place in found else gradient

    places, components = (0, 1, 2), (mu, logvar)
    if all_mu is not None:
        places, components = (0, 3, 4), (all_mu, all_logvar)
    of_pairs = [needs[place] for place in places]
    if any(of_pairs):
        options = None, logsumexp[-1], [*of_pairs, False], dataset_size
        add(mixture_log_prob_backward(dtc - dmi, z, *components, *options), places)
        options = None, logsumexp[:-1], [*of_pairs, False], dataset_size
        add(marginals_log_prob_backward(ddimension_wise - dtc, z, *components, *options), places)
    own = [needs[place] for place in (1, 0, 2)]
    if any(own):
        operands = mu, z, logvar, 0.0, -1
        add(launch_gaussian_nll(*operands, dnll=dmi, needs=own)[1], (1, 0, 2))
    if needs[0]:
        add([(ddimension_wise[:, None] * z).to(z.dtype)], (0,))
    return [found[place] for place in sorted(found)]
