"""Who competes: every provider is a set of plain functions, one an operation.

All functions of an operation take the same tensors, in the order of ``cases.OPERATIONS``,
and return the same outputs. Values are per example, in nats, with every constant: that is
what the oracle checks. Baselines are written as their users would, but not carelessly:
nothing is computed twice, constants are Python numbers, and nothing waits for the device
unless torch itself does.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Normal, kl_divergence

import fused_elbo

from . import drop_ins
from .cases import FIXED_LOGVAR, SAMPLED

LOG_2PI = math.log(2 * math.pi)


# --- eager: the textbook formula ---------------------------------------------------------


def eager_gaussian_log_prob(x, mu, logvar):
    return -0.5 * (LOG_2PI + logvar + (x - mu).pow(2) * torch.exp(-logvar)).sum(-1)


def eager_gaussian_kl(mu, logvar):
    return -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1)


def eager_gaussian_rsample(mu, logvar):
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


def eager_rsample_kl(mu, logvar):
    return eager_gaussian_rsample(mu, logvar), eager_gaussian_kl(mu, logvar)


def gaussian_nll_constant(recon):
    return 0.5 * recon.shape[-1] * (FIXED_LOGVAR + LOG_2PI)


def eager_gaussian_nll(recon, x):
    squares = (x - recon).pow(2).sum(-1)
    return 0.5 * math.exp(-FIXED_LOGVAR) * squares + gaussian_nll_constant(recon)


def eager_gaussian_nll_learned(recon, x, logvar):
    return 0.5 * (LOG_2PI + logvar + (x - recon).pow(2) * torch.exp(-logvar)).sum(-1)


def eager_bernoulli_nll(logits, x):
    return (F.softplus(logits) - x * logits).sum(-1)


def decode(z, weight1, bias1, weight2, bias2):
    """The decoder of everyone's step."""
    return F.linear(F.relu(F.linear(z, weight1, bias1)), weight2, bias2)


def eager_iwae_encoder(mu, logvar, samples):
    """log q(z) from the noise: of its terms and the prior's the constants cancel.

    Sums in float32, whatever the inputs are: of bfloat16 sums the weights would be noise.
    """
    eps = torch.randn(samples, *mu.shape, dtype=mu.dtype, device=mu.device)
    z = mu + torch.exp(0.5 * logvar) * eps
    squares = (eps.square() - z.square()).sum(-1, dtype=torch.float32)
    return z, 0.5 * (squares + logvar.sum(-1, dtype=torch.float32))


def eager_bound(log_weights):
    # A tensor: with math.log the compiler would compile anew for every K.
    samples = log_weights.new_full((), len(log_weights))
    return torch.logsumexp(log_weights, 0) - samples.log()


def eager_iwae_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = eager_iwae_encoder(mu, logvar, samples)
    logits = decode(z, *decoder)
    nll = (F.softplus(logits) - x * logits).sum(-1, dtype=torch.float32)
    return z.detach(), -eager_bound(log_ratio - nll).mean()


def eager_elbo_step(logits, x, mu, logvar):
    z, kl = eager_rsample_kl(mu, logvar)
    return z, (eager_bernoulli_nll(logits, x) + kl).mean()


EAGER = {
    "gaussian_log_prob": eager_gaussian_log_prob,
    "gaussian_kl": eager_gaussian_kl,
    "gaussian_rsample": eager_gaussian_rsample,
    "rsample_kl": eager_rsample_kl,
    "gaussian_nll": eager_gaussian_nll,
    "gaussian_nll_learned": eager_gaussian_nll_learned,
    "bernoulli_nll": eager_bernoulli_nll,
    "elbo_step": eager_elbo_step,
    "iwae_encoder": eager_iwae_encoder,
    "iwae_step": eager_iwae_step,
    "decoder": decode,
    **drop_ins.ORIGINALS,
}


# --- torch.distributions, without argument validation --------------------------------------


def normal(mu, logvar):
    return Normal(mu, torch.exp(0.5 * logvar), validate_args=False)


def standard_normal():
    return Normal(0.0, 1.0, validate_args=False)


def distributions_gaussian_log_prob(x, mu, logvar):
    return normal(mu, logvar).log_prob(x).sum(-1)


def distributions_gaussian_kl(mu, logvar):
    return kl_divergence(normal(mu, logvar), standard_normal()).sum(-1)


def distributions_gaussian_rsample(mu, logvar):
    return normal(mu, logvar).rsample()


def distributions_rsample_kl(mu, logvar):
    q = normal(mu, logvar)
    return q.rsample(), kl_divergence(q, standard_normal()).sum(-1)


def distributions_gaussian_nll(recon, x):
    sigma = math.exp(0.5 * FIXED_LOGVAR)
    return -Normal(recon, sigma, validate_args=False).log_prob(x).sum(-1)


def distributions_gaussian_nll_learned(recon, x, logvar):
    return -normal(recon, logvar).log_prob(x).sum(-1)


def distributions_bernoulli_nll(logits, x):
    return -Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)


def distributions_elbo_step(logits, x, mu, logvar):
    z, kl = distributions_rsample_kl(mu, logvar)
    return z, (distributions_bernoulli_nll(logits, x) + kl).mean()


def distributions_iwae_encoder(mu, logvar, samples):
    q = normal(mu, logvar)
    z = q.rsample((samples,))
    return z, (standard_normal().log_prob(z) - q.log_prob(z)).sum(-1, dtype=torch.float32)


def distributions_iwae_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = distributions_iwae_encoder(mu, logvar, samples)
    likelihood = Bernoulli(logits=decode(z, *decoder), validate_args=False).log_prob(x)
    log_weights = log_ratio + likelihood.sum(-1, dtype=torch.float32)
    return z.detach(), -eager_bound(log_weights).mean()


DISTRIBUTIONS = {
    "gaussian_log_prob": distributions_gaussian_log_prob,
    "gaussian_kl": distributions_gaussian_kl,
    "gaussian_rsample": distributions_gaussian_rsample,
    "rsample_kl": distributions_rsample_kl,
    "gaussian_nll": distributions_gaussian_nll,
    "gaussian_nll_learned": distributions_gaussian_nll_learned,
    "bernoulli_nll": distributions_bernoulli_nll,
    "elbo_step": distributions_elbo_step,
    "iwae_encoder": distributions_iwae_encoder,
    "iwae_step": distributions_iwae_step,
}


# --- builtin: torch's own loss functions, where there is one --------------------------------


def builtin_gaussian_nll(recon, x):
    squares = F.mse_loss(recon, x, reduction="none").sum(-1)
    return 0.5 * math.exp(-FIXED_LOGVAR) * squares + gaussian_nll_constant(recon)


def builtin_gaussian_nll_learned(recon, x, logvar):
    nll = F.gaussian_nll_loss(recon, x, logvar.exp(), full=True, reduction="none")
    return nll.sum(-1)


def builtin_bernoulli_nll(logits, x):
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def builtin_elbo_step(logits, x, mu, logvar):
    """PyTorch's VAE example: a summed cross-entropy and a summed KL, over the batch size."""
    z = eager_gaussian_rsample(mu, logvar)
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()
    return z, (nll + kl) / mu.shape[0]


def builtin_iwae_step(mu, logvar, x, *decoder, samples):
    """Its cross-entropy takes x of the logits' shape: expanded, which copies nothing."""
    z, log_ratio = eager_iwae_encoder(mu, logvar, samples)
    logits = decode(z, *decoder)
    nll = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    return z.detach(), -eager_bound(log_ratio - nll.sum(-1, dtype=torch.float32)).mean()


BUILTIN = {
    "gaussian_nll": builtin_gaussian_nll,
    "gaussian_nll_learned": builtin_gaussian_nll_learned,
    "bernoulli_nll": builtin_bernoulli_nll,
    "elbo_step": builtin_elbo_step,
    "iwae_step": builtin_iwae_step,
}


# --- fused_elbo ------------------------------------------------------------------------------


def fused_gaussian_nll(recon, x):
    return fused_elbo.gaussian_nll(recon, x, FIXED_LOGVAR)


def fused_elbo_step(logits, x, mu, logvar):
    z, kl = fused_elbo.rsample_kl(mu, logvar)
    return z, fused_elbo.elbo_loss(logits, x, kl=kl)


def fused_iwae_encoder(mu, logvar, samples):
    return fused_elbo.rsample_log_ratio(mu, logvar, samples)


def fused_iwae_step(mu, logvar, x, *decoder, samples):
    z, log_ratio = fused_elbo.rsample_log_ratio(mu, logvar, samples)
    return z.detach(), fused_elbo.iwae_loss(decode(z, *decoder), x, log_ratio)


CHUNK = 8  # samples at a time


def chunked_iwae_step(mu, logvar, x, *decoder, samples, shown=None):
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
    _, loss = chunked_iwae_step(*inputs, samples=samples, shown=shown)
    return torch.cat(shown), loss


FUSED = {
    "gaussian_log_prob": fused_elbo.gaussian_log_prob,
    "gaussian_kl": fused_elbo.gaussian_kl,
    "gaussian_rsample": fused_elbo.gaussian_rsample,
    "rsample_kl": fused_elbo.rsample_kl,
    "gaussian_nll": fused_gaussian_nll,
    "gaussian_nll_learned": fused_elbo.gaussian_nll,
    "bernoulli_nll": fused_elbo.bernoulli_nll,
    "elbo_step": fused_elbo_step,
    "iwae_encoder": fused_iwae_encoder,
    "iwae_step": fused_iwae_step,
    **drop_ins.REPLACEMENTS,
}
CHUNKED = {"iwae_step": chunked_iwae_step}


# --- torch.compile of the eager functions ----------------------------------------------------

COMPILE_MODES = {
    "compile": {},
    # "max-autotune-no-cudagraphs", with the reductions in one kernel instead of two.
    "compile-max": {
        "options": {
            "max_autotune": True,
            "coordinate_descent_tuning": True,
            "triton.cooperative_reductions": True,
        }
    },
    "compile-reduce-overhead": {"mode": "reduce-overhead"},
}
# On a CPU the compiler's own generator is scalar code, ten times as slow as torch's.
CPU_COMPILE = {"options": {"fallback_random": True}}
_compiled = {}


def compiled(provider, op, device):
    """The compiled eager function.

    On a GPU it is compiled anew for every shape, the best that the compiler can give. On a
    CPU one function with symbolic sizes serves all shapes of an operation, or compiling
    would take most of the suite's time. ``fullgraph`` makes a graph break, or a silent fall
    back to eager at the recompile limit, an error; one original cannot do without a break.
    """
    static = device == "cuda"
    # With symbolic sizes: K, batch and latents that are equal once are not so in the next cell.
    torch.fx.experimental._config.use_duck_shape = static
    if static:
        torch._dynamo.reset()
    elif (provider, op) in _compiled:
        return _compiled[provider, op]
    options = COMPILE_MODES[provider] if static else CPU_COMPILE
    whole = op != drop_ins.GRAPH_BREAK
    function = torch.compile(EAGER[op], fullgraph=whole, dynamic=not static, **options)
    if not static:
        _compiled[provider, op] = function
    return function


def new_step(function):
    """Tell CUDA-graph trees that outputs of the last call may be written over, as users must."""

    def call(*inputs):
        torch.compiler.cudagraph_mark_step_begin()
        return function(*inputs)

    return call


PLAIN = {
    "eager": EAGER,
    "distributions": DISTRIBUTIONS,
    "builtin": BUILTIN,
    "fused_elbo": FUSED,
    "fused_elbo-chunked": CHUNKED,
}
# fused_elbo last: whatever the order does to clocks and caches, it gains nothing by it.
OURS = ("fused_elbo", "fused_elbo-chunked")
ORDER = {
    "cpu": ("eager", "distributions", "builtin", "compile", *OURS),
    "cuda": ("eager", "distributions", "builtin", *COMPILE_MODES, *OURS),
}


def names(op, device):
    """The providers that have this operation on this kind of device."""
    if op == drop_ins.PYRO:
        return ["eager", "fused_elbo"] if drop_ins.has_pyro() else []
    return [name for name in ORDER[device] if name in COMPILE_MODES or op in PLAIN[name]]


def get(provider, op, device, samples=1):
    """The function of a provider for an operation; "cpu" or "cuda" decides how to compile."""
    function = compiled(provider, op, device) if provider in COMPILE_MODES else PLAIN[provider][op]
    if op in SAMPLED and op != "decoder":
        function = functools.partial(function, samples=samples)
    return new_step(function) if provider == "compile-reduce-overhead" else function


def get_checked(provider, op, samples):
    """What the oracle checks, where that is not what is timed; else None."""
    if provider != "fused_elbo-chunked":
        return None
    return functools.partial(chunked_with_z, samples=samples)
