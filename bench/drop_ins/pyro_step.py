"""A step of Pyro, which is imported where it is run: that changes torch.distributions' defaults."""

import functools

import torch

from fused_elbo.distributions import DiagonalNormal

from ..harness import oracle, traffic
from ..harness.cases import FLOAT32
from ..harness.operation import ENCODED, PIXEL_BITS
from ..samples.entries import DECODER, decode, decoder_floor
from .drop_in import DropIn

ENTRIES = {}


@functools.cache
def pyro_diagonal_normal():
    """As DiagonalNormal's documentation says."""
    from pyro.distributions.torch_distribution import TorchDistributionMixin

    return type("PyroDiagonalNormal", (DiagonalNormal, TorchDistributionMixin), {})


def pyro_loss(prior, posterior, x, decoder):
    """(z, loss) of an amortised VAE; the loss is summed over the batch."""
    import pyro
    from pyro.distributions import Bernoulli
    from pyro.infer import TraceMeanField_ELBO

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


def original_pyro(mu, logvar, x, *decoder):
    from pyro.distributions import Normal

    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu)).to_event(1)
    posterior = Normal(mu, torch.exp(0.5 * logvar)).to_event(1)
    return pyro_loss(prior, posterior, x, decoder)


def replaced_pyro(mu, logvar, x, *decoder):
    diagonal, zero = pyro_diagonal_normal(), torch.zeros_like(mu)
    return pyro_loss(diagonal(mu=zero, logvar=zero), diagonal(mu, logvar), x, decoder)


def exact_pyro(mu, logvar, x, *decoder, eps):
    z = oracle.sample(mu, logvar, eps)
    nll = oracle.bernoulli(oracle.decode(z, *decoder), x)
    return z, (nll + oracle.kl_standard(mu, logvar)).sum()


# Whole loss of Pyro: TraceMeanField_ELBO, MLP decoder of 784 pixels, sum.
ENTRIES["pyro_step"] = DropIn(
    inputs={**ENCODED, "pixels": PIXEL_BITS, **DECODER},
    outputs=("shown", "scalar"),
    providers={"eager": original_pyro, "fused_elbo": replaced_pyro},
    compiles=False,
    exact=exact_pyro,
    floor=lambda case: (
        traffic.SAMPLE_KL.elements(case) + decoder_floor(case) + traffic.loss_pixels(case)
    ),
    needs="pyro",
    dtypes=FLOAT32,  # Pyro sums over the batch in the dtype of its inputs
    most=1024,  # what Pyro adds to a step does not grow with the batch
)
