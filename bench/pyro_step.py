"""A loss of Pyro, with its own Normal and with DiagonalNormal. Importing this imports Pyro."""

import pyro
import torch
from pyro.distributions import Bernoulli, Normal
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import TraceMeanField_ELBO

from fused_elbo.distributions import DiagonalNormal

from .providers import decode


class PyroDiagonalNormal(DiagonalNormal, TorchDistributionMixin):
    """As DiagonalNormal's documentation says."""


def step(prior, posterior, x, decoder):
    """(z, loss) of an amortised VAE; the loss is summed over the batch."""
    shown = None

    def model():
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", prior)
            pixels = Bernoulli(logits=decode(z, *decoder)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide():
        nonlocal shown
        with pyro.plate("batch", len(x)):
            shown = pyro.sample("z", posterior)

    loss = TraceMeanField_ELBO().differentiable_loss(model, guide)
    return shown.detach(), loss


def original(mu, logvar, x, *decoder):
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu)).to_event(1)
    posterior = Normal(mu, torch.exp(0.5 * logvar)).to_event(1)
    return step(prior, posterior, x, decoder)


def replaced(mu, logvar, x, *decoder):
    zero = torch.zeros_like(mu)
    prior, posterior = PyroDiagonalNormal(mu=zero, logvar=zero), PyroDiagonalNormal(mu, logvar)
    return step(prior, posterior, x, decoder)
