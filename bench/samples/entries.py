"""The operations on K samples for each example, forward + backward alone.

A block an operation: what everyone runs, and its entry.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli

import fused_elbo

from ..harness import oracle
from ..harness.cases import EVENTS, HIDDEN
from ..harness.operation import ENCODED, LATENTS, PIXEL_BITS, Input, Operation
from ..harness.traffic import ITEM
from ..operations.entries import normal, standard_normal
from .cases import ENCODER_GRIDS, STEP_GRIDS

ENTRIES = {}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sampled(Operation):
    """Values per sample and example; sums in float32, whatever the inputs are."""

    grids: dict  # SampleGrid by device and name
    takes_samples: bool = True
    memory_of_small: bool = True


def eager_encoder(mu, logvar, samples):
    """log q(z) from the noise: of its terms and the prior's the constants cancel.

    Sums in float32: of bfloat16 sums the weights would be noise.
    """
    eps = torch.randn(samples, *mu.shape, dtype=mu.dtype, device=mu.device)
    z = mu + torch.exp(0.5 * logvar) * eps
    squares = (eps.square() - z.square()).sum(-1, dtype=torch.float32)
    return z, 0.5 * (squares + logvar.sum(-1, dtype=torch.float32))


def distributions_encoder(mu, logvar, samples):
    q = normal(mu, logvar)
    z = q.rsample((samples,))
    return z, (standard_normal().log_prob(z) - q.log_prob(z)).sum(-1, dtype=torch.float32)


def fused_encoder(mu, logvar, samples):
    return fused_elbo.rsample_log_ratio(mu, logvar, samples)


def exact_encoder(mu, logvar, eps):
    z = oracle.sample(mu, logvar, eps)
    return z, oracle.log_ratio(z, mu, logvar)


def encoder_floor(case):
    """K samples: z written, dz read; mu and logvar read twice, their gradients written; the log
    ratio and its gradient."""
    item = ITEM[case.dtype]
    each = 2 * item * case.latent * case.samples + 6 * item * case.latent + 2 * 4 * case.samples
    return each * case.batch


# K samples and their log p(z) - log q(z|x).
ENTRIES["iwae_encoder"] = Sampled(
    inputs=ENCODED,
    outputs=("samples", "sample rows"),
    providers={
        "eager": eager_encoder,
        "distributions": distributions_encoder,
        "fused_elbo": fused_encoder,
    },
    exact=exact_encoder,
    floor=encoder_floor,
    grids=ENCODER_GRIDS,
)


def by_fan_in(normal):
    return normal / normal.shape[1] ** 0.5


# Small: the samples' log likelihoods differ by some nats, as they do after training. With
# ten times the weight one sample would take all, and the gradient hang on its rounding.
DECODER = {
    "weight1": Input(("hidden", "latent"), by_fan_in),
    "bias1": Input(("hidden",), lambda normal: 0.1 * normal),
    "weight2": Input(("events", "hidden"), lambda normal: 0.1 * by_fan_in(normal)),
    "bias2": Input(("events",), lambda normal: 0.1 * normal),
}


def decode(z, weight1, bias1, weight2, bias2):
    """The decoder of everyone's step."""
    return F.linear(F.relu(F.linear(z, weight1, bias1)), weight2, bias2)


def decoder_floor(case):
    """z and the weights read, logits written; dlogits, z and weights read, all gradients written.

    What a decoder keeps in between does not count: it might compute it again.
    """
    weights = HIDDEN * (case.latent + 1) + EVENTS * (HIDDEN + 1)
    rows = case.samples * case.batch
    return ITEM[case.dtype] * ((3 * case.latent + 2 * EVENTS) * rows + 3 * weights)


def eager_bound(log_weights):
    # A tensor: with math.log the compiler would compile anew for every K.
    samples = log_weights.new_full((), len(log_weights))
    return torch.logsumexp(log_weights, 0) - samples.log()


def eager_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = eager_encoder(mu, logvar, samples)
    logits = decode(z, *decoder)
    nll = (F.softplus(logits) - x * logits).sum(-1, dtype=torch.float32)
    return z.detach(), -eager_bound(log_ratio - nll).mean()


def distributions_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = distributions_encoder(mu, logvar, samples)
    likelihood = Bernoulli(logits=decode(z, *decoder), validate_args=False).log_prob(x)
    log_weights = log_ratio + likelihood.sum(-1, dtype=torch.float32)
    return z.detach(), -eager_bound(log_weights).mean()


def builtin_step(mu, logvar, x, *decoder, samples):
    """Its cross-entropy takes x of the logits' shape: expanded, which copies nothing."""
    z, log_ratio = eager_encoder(mu, logvar, samples)
    logits = decode(z, *decoder)
    nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return z.detach(), -eager_bound(log_ratio - nll.sum(-1, dtype=torch.float32)).mean()


def fused_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = fused_elbo.rsample_log_ratio(mu, logvar, samples)
    return z.detach(), fused_elbo.iwae_loss(decode(z, *decoder), x, log_ratio)


CHUNK = 8  # samples at a time


def chunked_step(mu, logvar, x, *decoder, samples, shown=None):
    """``shown`` collects z; where a step is timed nobody holds it."""

    def decode_chunk(z):
        if shown is not None:
            shown.append(z.detach())
        return decode(z, *decoder)

    return None, fused_elbo.chunked_iwae_loss(
        decode_chunk, x, mu, logvar, samples, chunk_size=CHUNK
    )


def chunked_with_z(*inputs, samples):
    """The same step for the oracle, which wants to see z."""
    shown = []
    _, loss = chunked_step(*inputs, samples=samples, shown=shown)
    return torch.cat(shown), loss


def exact_step(mu, logvar, x, *decoder, eps):
    z, log_ratio = exact_encoder(mu, logvar, eps)
    log_weights = log_ratio - oracle.bernoulli(oracle.decode(z, *decoder), x)
    bound = torch.log(torch.exp(log_weights - log_weights.amax(0)).mean(0)) + log_weights.amax(0)
    return z, -bound.mean()


def step_floor(case):
    """Each stage reads and writes once: a step is their sum, for its decoder is the user's own.

    Of the likelihood logits are read twice and their gradient written, for K samples; x is read
    twice; rows of 4 bytes. Not in one pass, as elbo_step's: a sample's gradient waits for all
    samples' weights.
    """
    pixels = ITEM[case.dtype] * (3 * case.samples + 2) * case.batch * EVENTS
    likelihood = pixels + 2 * 4 * case.samples * case.batch
    return encoder_floor(case) + decoder_floor(case) + likelihood


# Whole IWAE step: K samples, decoder, likelihood, bound.
ENTRIES["iwae_step"] = Sampled(
    inputs={**ENCODED, "pixels": PIXEL_BITS, **DECODER},
    outputs=("shown", "scalar"),
    providers={
        "eager": eager_step,
        "distributions": distributions_step,
        "builtin": builtin_step,
        "fused_elbo": fused_step,
        "fused_elbo-chunked": chunked_step,
    },
    checked={"fused_elbo-chunked": chunked_with_z},
    exact=exact_step,
    # A log likelihood of 540 nats is good to 1e-4 in float32, and so is the weight of a sample,
    # and what it multiplies. Forgetting a term of it costs a tenth.
    tolerance={"float32": 2e-3, "bfloat16": 8e-2, "float16": 1e-2, "float64": 1e-10},
    floor=step_floor,
    grids=STEP_GRIDS,
)


# The part that a step cannot do without. The rest of it is the loss.
ENTRIES["decoder"] = Sampled(
    inputs={"z": Input(("samples", *LATENTS)), **DECODER},
    outputs=("sample events",),
    providers={"eager": decode},
    exact=oracle.decode,
    floor=decoder_floor,
    grids=STEP_GRIDS,
    takes_samples=False,
)
