"""The byte models: what an operation must move between memory and the processor, at least.

Every input is read once and every output written once, as in the speed contract; nothing
in between touches memory. No provider can be faster than these bytes at the speed of a
copy, once the data is larger than the caches.
"""

from typing import NamedTuple

from .cases import EVENTS, HIDDEN


class Floor(NamedTuple):
    """Full-size tensors read and written, and numbers per row of 4 bytes (float32 sums)."""

    forward: int
    backward: int
    forward_rows: int = 1
    backward_rows: int = 1


# forward: inputs + outputs. backward: upstream gradient and inputs again + gradients.
FLOORS = {
    "rsample_kl": Floor(3, 5),  # mu, logvar -> z | dz, mu, logvar -> dmu, dlogvar
    "gaussian_kl": Floor(2, 4),  # mu, logvar | mu, logvar -> dmu, dlogvar
    "gaussian_rsample": Floor(3, 4, 0, 0),  # mu, logvar -> z | dz, logvar -> dmu, dlogvar
    "gaussian_nll": Floor(2, 3),  # recon, x | recon, x -> drecon
    "gaussian_nll_learned": Floor(3, 5),  # recon, x, logvar | the same -> drecon, dlogvar
    "bernoulli_nll": Floor(2, 3),  # logits, x | logits, x -> dlogits
    "gaussian_log_prob": Floor(3, 5),  # x, mu, logvar | the same -> dmu, dlogvar
}
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def element_bytes(op, direction, dtype="float32"):
    """Bytes an element of the full-size tensors, as the speed contract counts.

    >>> element_bytes("rsample_kl", "forward"), element_bytes("rsample_kl", "forward+backward")
    (12, 32)
    """
    floor = FLOORS[op]
    tensors = floor.forward + (floor.backward if direction == "forward+backward" else 0)
    return tensors * ITEM[dtype]


def step_event_bytes(direction, dtype="float32"):
    """Bytes a pixel of elbo_step: logits, x, and for training dlogits, all in the forward pass."""
    return (3 if direction == "forward+backward" else 2) * ITEM[dtype]


def floor_bytes(op, batch, latent, dtype, direction):
    """The least bytes that a call moves."""
    if op == "elbo_step":
        sample = element_bytes("rsample_kl", direction, dtype) * batch * latent
        return sample + step_event_bytes(direction, dtype) * batch * EVENTS
    floor = FLOORS[op]
    backward = direction == "forward+backward"
    rows = floor.forward_rows + (floor.backward_rows if backward else 0)
    return element_bytes(op, direction, dtype) * batch * latent + 4 * rows * batch


def encoder_bytes(samples, batch, latent, item):
    """K samples: z written, dz read; mu and logvar read twice, their gradients written; the log
    ratio and its gradient."""
    return (2 * item * latent * samples + 6 * item * latent + 2 * 4 * samples) * batch


def decoder_bytes(samples, batch, latent, item):
    """z and the weights read, logits written; dlogits, z and weights read, all gradients written.

    What a decoder keeps in between does not count: it might compute it again.
    """
    weights = HIDDEN * (latent + 1) + EVENTS * (HIDDEN + 1)
    return item * ((3 * latent + 2 * EVENTS) * samples * batch + 3 * weights)


def likelihood_bytes(samples, batch, item):
    """Logits read twice, their gradient written, for K samples; x read twice; rows of 4 bytes.

    Not in one pass, as elbo_step's: a sample's gradient waits for all samples' weights.
    """
    return item * (3 * samples + 2) * batch * EVENTS + 2 * 4 * samples * batch


def sample_floor_bytes(op, samples, batch, latent, dtype):
    """The least bytes of forward + backward, for K samples: each stage reads and writes once.

    A step is the sum of its stages, for its decoder is the user's own.
    """
    item = ITEM[dtype]
    if op == "iwae_encoder":
        return encoder_bytes(samples, batch, latent, item)
    decoder = decoder_bytes(samples, batch, latent, item)
    if op == "decoder":
        return decoder
    likelihood = likelihood_bytes(samples, batch, item)
    return encoder_bytes(samples, batch, latent, item) + decoder + likelihood


def drop_in_floor_bytes(op, batch, latent, dtype):
    """The least bytes of forward + backward of a drop-in, its loss in one pass over the pixels.

    The gradient of a loss is one scalar, so that its pixels need not be read again for backward:
    reconstruction and data are read, and the reconstruction's gradient written. The KL counts as
    ever.
    """
    item = ITEM[dtype]
    pixels = step_event_bytes("forward+backward", dtype) * batch * EVENTS
    kl = element_bytes("gaussian_kl", "forward+backward", dtype) * batch * latent
    if op == "scvi_kl_local":
        return floor_bytes("gaussian_kl", batch, latent, dtype, "forward+backward")
    if op == "gaussian_nll_loss":
        return 5 * item * batch * EVENTS  # the variance is read, and its gradient written
    if op == "pyro_step":
        sample = element_bytes("rsample_kl", "forward+backward", dtype) * batch * latent
        return sample + decoder_bytes(1, batch, latent, item) + pixels
    return pixels + kl
