"""The terms that the losses of several projects share, as the projects define them.

Terms run the fused kernels where there are any for the arguments, and torch's own losses and the
reference elsewhere. Where an original would broadcast by mistake, they raise an error.
"""

import math

import torch

from ..dispatch import choice, gaussian_calls, mixture_calls, validate
from ..functional import gaussian_kl, gaussian_log_prob
from ..reference import textbook
from ..reference.reference import accumulate
from .torch_nn import binary_cross_entropy, fits_kernel, in_torch_dtype, mse_loss

# Where the probability of an inner bin is below this guard, VDVAE and NVAE replace it by the
# density in the middle of the bin times its width. That is exact for bins much narrower than the
# scale. At the least scale it is log(sinh t / t) nats too little per color, where t is half a bin
# over the scale: 2.1 nats for 8 bits, 31 for 5 bits.
LOGISTIC_GUARD = 1e-5

# Below this many elements (batch * batch * latents), materialising all pairs beats the kernels,
# because the odd row needs a separate torch call.
SMALL = 2**16


def mean_squared_error(impl, **images):
    """``F.mse_loss`` for images of one shape. It would broadcast others, and average over more."""
    recon, x = images.values()
    if recon.shape != x.shape:
        names = " and ".join(images)
        raise ValueError(f"expected {names} of one shape, got {validate.describe(images)}")
    impl = choice.where_it_fits(impl, fits_kernel("mean", recon, x))
    return mse_loss(recon, x, impl=impl)


def bernoulli_cross_entropy(recon, x, reduction, impl):
    """``F.binary_cross_entropy``, by a kernel where one supports the arguments."""
    impl = choice.where_it_fits(impl, fits_kernel("mean", recon, x, probabilities=True))
    return binary_cross_entropy(recon, x, reduction=reduction, impl=impl)


def mean_kl(x, mu, logvar, impl):
    """The KL of latents [B, D], averaged over examples.

    With more dimensions the originals would broadcast it.
    """
    kl = gaussian_kl(mu, logvar, impl=impl)
    if kl.shape != x.shape[:1]:
        shapes = validate.describe({"mu": mu, "logvar": logvar, "x": x})
        raise ValueError(f"expected mu and logvar [B, D] for x [B, ...], got {shapes}")
    return in_torch_dtype(kl.mean(), mu)


def kl_of_normals(q, p, form, impl, names=("q", "q.scale", "p", "p.scale")):
    """(KL, the shape of its latents); ``q`` and ``p`` are pairs of a mean and a spread."""
    named = dict(zip(names, (*q, *p), strict=True))
    validate.tensors(**named)
    shape = validate.broadcast(**named)
    if (p[0] is None) != (p[1] is None):  # the missing one is that of N(0, 1)
        zero = q[0].new_zeros(())
        p = (zero, p[1]) if p[0] is None else (p[0], zero + 1)
    return gaussian_calls.normal_kl(shape, q, p, form, impl=impl), shape


def check_latents(x, **latents):
    """Latents must have one shape [B, D], and x as many examples."""
    validate.tensors(x=x, **latents)
    first = next(iter(latents.values()))
    same = all(t.shape == first.shape for t in latents.values())
    if not same or first.dim() != 2 or 0 in first.shape or first.shape[:1] != x.shape[:1]:
        shapes = validate.describe({**latents, "x": x})
        raise ValueError(
            f"expected {', '.join(latents)} of one shape [B, D] for x [B, ...], got {shapes}"
        )


def check_batch(batch, dataset_size, stratified, option, *, name="dataset_size"):
    """Check the sizes; ``option`` is the argument that asks for stratified weights."""
    validate.count(name, dataset_size, batch)
    if stratified and batch < 2:
        raise ValueError(f"{option} needs a batch of at least 2, got 1")


def weighted(terms, weights):
    """The weighted sum of the terms, one number per example."""
    return sum(weight * term for weight, term in zip(weights, terms, strict=True))


def terms_of_columns(z, mu, logvar, dataset_size, *, power=1, impl):
    """The three terms with stratified weights in columns, each raised to ``power`` in log q(z).

    Let M = B - 1. In each row of the weights W the first example has the weight 1 / N, the second
    (N - M) / (N M), and all others 1 / M, whichever example z belongs to. In the row before the
    last the first example has the weight of the second. (1 / N should be on the diagonal of W.)
    """
    others, size = len(z) - 1, dataset_size
    z, mu, logvar = accumulate(z, mu, logvar)
    log_weights = z.new_full((len(z),), -math.log(others))
    log_weights[0] = -math.log(size)
    log_weights[1] = math.log((size - others) / (size * others))
    if impl == "auto" and z.numel() * len(z) < SMALL:
        matrix = log_weights.repeat(len(z), 1)
        matrix[-2, 0] = matrix[-2, 1]
        joint, marginals = textbook.aggregate_log_probs(z, mu, logvar, power * matrix, matrix)
    else:
        each = power * log_weights, log_weights
        most = mixture_calls.aggregate_log_probs(z, mu, logvar, log_weights=each, impl=impl)
        odd = torch.cat([log_weights[1:2], log_weights[1:]])
        row = textbook.aggregate_log_probs(z[-2:-1], mu, logvar, power * odd, odd)
        joint, marginals = (m.slice_scatter(r, 0, -2, -1) for m, r in zip(most, row, strict=True))
    own = gaussian_log_prob(z, mu, logvar, impl=impl)
    zero = z.new_zeros(())
    prior = gaussian_log_prob(z, zero, zero, impl=impl)
    return own - joint, joint - marginals, marginals - prior


def count_of(number):
    """A count on the host: a tensor, because torch.compile would compile anew for each number."""
    return torch.tensor(number, device="cpu")


def share_done(count, steps, dtype):
    """The share of ``steps`` that ``count`` has done, at most 1, without waiting for a device."""
    return 1.0 if steps == 0 else (count.double() / steps).clamp(max=1.0).to(dtype)
