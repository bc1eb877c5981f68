"""What is timed: operations, grids, and random inputs. Nothing here imports torch at the top."""

from itertools import zip_longest
from typing import NamedTuple

# Pixels of the decoder's output in the steps: 28 x 28, as in every VAE tutorial.
EVENTS = 784
# Units of the decoder of iwae_step: latents -> 256, ReLU -> 784.
HIDDEN = 256
# The fixed log variance of gaussian_nll; not 0, which would make its scale a multiplication by 1.
FIXED_LOGVAR = -1.0

DIRECTIONS = ("forward+backward", "forward")


class Operation(NamedTuple):
    """An operation by its tensors: "latent" ones are [B, D], "event" ones [B, 784].

    Of K samples: "samples" [K, B, D], "sample rows" [K, B], "sample events" [K, B, 784].
    """

    inputs: tuple  # names, in the order of the providers' arguments
    gradients: tuple  # those that get a gradient
    outputs: tuple  # kinds; a "scalar" has gradient 1, a sample that is only "shown" none
    title: str


# In the order of the sweep: what matters most first.
OPERATIONS = {
    "rsample_kl": Operation(
        ("mu", "logvar"), ("mu", "logvar"), ("latent", "rows"), "sample + KL in one pass"
    ),
    "elbo_step": Operation(
        ("logits", "pixels", "mu", "logvar"),
        ("logits", "mu", "logvar"),
        ("latent", "scalar"),
        "whole loss step: sample + KL, Bernoulli likelihood of 784 pixels, mean",
    ),
    "gaussian_kl": Operation(("mu", "logvar"), ("mu", "logvar"), ("rows",), "KL to N(0, I)"),
    "gaussian_rsample": Operation(
        ("mu", "logvar"), ("mu", "logvar"), ("latent",), "reparameterised sample"
    ),
    "gaussian_nll": Operation(
        ("recon", "x"), ("recon",), ("rows",), "Gaussian likelihood, fixed sigma"
    ),
    "gaussian_nll_learned": Operation(
        ("recon", "x", "logvar"),
        ("recon", "logvar"),
        ("rows",),
        "Gaussian likelihood, learned sigma per element",
    ),
    "bernoulli_nll": Operation(
        ("recon", "binary"), ("recon",), ("rows",), "Bernoulli likelihood from logits"
    ),
    "gaussian_log_prob": Operation(
        ("x", "mu", "logvar"), ("mu", "logvar"), ("rows",), "log-density of given points"
    ),
}
DECODER = ("weight1", "bias1", "weight2", "bias2")
# With K samples for each example, forward + backward alone.
SAMPLED = {
    "iwae_encoder": Operation(
        ("mu", "logvar"),
        ("mu", "logvar"),
        ("samples", "sample rows"),
        "K samples and their log p(z) - log q(z|x)",
    ),
    # z is shown for the oracle, which reads the noise off it.
    "iwae_step": Operation(
        ("mu", "logvar", "pixels", *DECODER),
        ("mu", "logvar", *DECODER),
        ("shown", "scalar"),
        "whole IWAE step: K samples, MLP decoder of 784 pixels, likelihood, bound",
    ),
    # What a step cannot do without: the rest of it is the loss.
    "decoder": Operation(
        ("z", *DECODER), ("z", *DECODER), ("sample events",), "the decoder of iwae_step alone"
    ),
}
# The losses of fused_elbo.compat, under their names, and the code that they replace: forward +
# backward alone. pyro_step is DiagonalNormal in Pyro, last: importing Pyro changes the defaults
# of torch.distributions.
DROP_INS = {
    "pytorch_examples_vae_loss": Operation(
        ("probabilities", "pixels", "mu", "logvar"),
        ("probabilities", "mu", "logvar"),
        ("scalar",),
        "cross-entropy of 784 probabilities + KL, sums",
    ),
    "pythae_vae_loss": Operation(
        ("recons", "image", "mu", "logvar"),
        ("recons", "mu", "logvar"),
        ("scalar",),
        "half the squared error of 784 pixels + KL, means over the batch",
    ),
    "antixk_vanilla_vae_loss": Operation(
        ("recons", "image", "mu", "logvar"),
        ("recons", "mu", "logvar"),
        ("scalar",),
        "squared error, a mean over 784 pixels, + weighted KL",
    ),
    "bolts_vae_loss": Operation(
        ("recons", "image", "mu", "logvar"),
        ("recons", "mu", "logvar"),
        ("scalar",),
        "squared error, a mean over 784 pixels, + KL of two Normal, a mean over latents",
    ),
    "scvi_kl_local": Operation(
        ("mu", "variance"), ("mu", "variance"), ("rows",), "weighted KL, from variances"
    ),
    "gaussian_nll_loss": Operation(
        ("recons", "image", "pixel_variance"),
        ("recons", "pixel_variance"),
        ("scalar",),
        "Gaussian likelihood, a variance for each of 784 pixels, mean",
    ),
    # z is shown for the oracle, as in iwae_step.
    "pyro_step": Operation(
        ("mu", "logvar", "pixels", *DECODER),
        ("mu", "logvar", *DECODER),
        ("shown", "scalar"),
        "whole loss of Pyro: TraceMeanField_ELBO, MLP decoder of 784 pixels, sum",
    ),
}
ALL = OPERATIONS | SAMPLED | DROP_INS
EVENT_TENSORS = ("logits", "pixels", "probabilities", "recons", "image", "pixel_variance")
# Weights of the KL: the defaults of AntixK/PyTorch-VAE and of lightning-bolts; of scvi-tools, which
# warms it up to 1, one on the way.
ANTIXK_WEIGHT, BOLTS_WEIGHT, SCVI_WEIGHT = 0.00025, 0.1, 0.5


class Grid(NamedTuple):
    """What a sweep covers, and how long each case is timed."""

    batches: tuple
    latents: tuple
    dtypes: tuple
    seconds: float  # timing per case and clock, rounds permitting
    rounds: tuple  # fewest and most


GRIDS = {
    ("cpu", "smoke"): Grid((64,), (8, 32), ("float32",), 0.005, (3, 10)),
    ("cpu", "default"): Grid((64, 512, 4096), (16, 64, 256), ("float32",), 0.1, (7, 100)),
    ("cpu", "full"): Grid(
        (64, 256, 1024, 4096, 16384), (8, 32, 128, 512, 1024), ("float32",), 0.3, (11, 100)
    ),
    ("cuda", "smoke"): Grid((64, 16384), (64,), ("float32",), 0.01, (5, 20)),
    # 16384 x 1024 is 16.8M elements: several times the L2, enough to speak of bandwidth.
    ("cuda", "default"): Grid(
        (64, 1024, 16384), (16, 128, 1024), ("float32", "bfloat16"), 0.05, (21, 100)
    ),
    ("cuda", "full"): Grid(
        (64, 256, 1024, 4096, 16384, 65536),
        (8, 32, 128, 512, 1024),
        ("float32", "bfloat16"),
        0.05,
        (21, 100),
    ),
}


FLOAT32, BOTH = ("float32",), ("float32", "bfloat16")

# Of the drop-ins, whose batches and dtypes are those of the Grid.
DROP_IN_LATENTS = 32
# bfloat16 has no probability between 0.996 and 1, and autocast refuses their cross-entropy; Pyro
# sums over the batch in the dtype of its inputs.
DROP_INS_IN_FLOAT32 = ("pytorch_examples_vae_loss", "pyro_step")
# What Pyro adds to a step does not grow with the batch.
PYRO_MOST = 1024


class SampleGrid(NamedTuple):
    """What is swept of an operation on K samples; shapes in order of value, the first published.

    Dtypes come from here, seconds and rounds from the Grid of the same name.
    """

    samples: tuple
    batches: tuple
    latents: tuple
    dtypes: tuple
    limit: int  # elements of the largest tensor: [K, B, D], or [K, B, 784] of a decoder


# "decoder" is swept where iwae_step is.
SAMPLE_GRIDS = {
    ("cpu", "smoke"): {
        "iwae_encoder": SampleGrid((8,), (64,), (8,), FLOAT32, 2**22),
        "iwae_step": SampleGrid((8,), (64,), (8,), FLOAT32, 2**22),
    },
    ("cpu", "default"): {
        "iwae_encoder": SampleGrid((1, 8, 64, 512), (64, 512), (64, 16), FLOAT32, 2**22),
        "iwae_step": SampleGrid((1, 8, 64), (64, 256), (64,), FLOAT32, 2**22),
    },
    # The oracle's float64 copies included, a case takes less than 4 GiB.
    ("cpu", "full"): {
        "iwae_encoder": SampleGrid(
            (1, 8, 64, 512), (64, 256, 1024, 4096), (64, 16, 256, 1024), FLOAT32, 2**24
        ),
        "iwae_step": SampleGrid((1, 8, 64, 512), (64, 256, 1024), (64, 16, 256), FLOAT32, 2**25),
    },
    ("cuda", "smoke"): {
        "iwae_encoder": SampleGrid((8,), (1024,), (64,), FLOAT32, 2**27),
        "iwae_step": SampleGrid((8,), (64,), (64,), FLOAT32, 2**28),
    },
    ("cuda", "default"): {
        "iwae_encoder": SampleGrid(
            (1, 8, 64, 512), (1024, 64, 16384), (128, 16, 1024), BOTH, 2**27
        ),
        # Half a minute of compiling a cell: few shapes.
        "iwae_step": SampleGrid((1, 8, 64, 512), (256, 64), (64,), BOTH, 2**28),
    },
    ("cuda", "full"): {
        "iwae_encoder": SampleGrid(
            (1, 8, 64, 512), (1024, 64, 16384, 256, 4096), (128, 16, 1024, 32, 512), BOTH, 2**27
        ),
        "iwae_step": SampleGrid((1, 8, 64, 512), (256, 64, 1024, 4096), (64, 16, 256), BOTH, 2**28),
    },
}


class Case(NamedTuple):
    """One point of the sweep."""

    op: str
    provider: str
    batch: int
    latent: int
    dtype: str
    direction: str
    samples: int = 1  # K, of the operations in SAMPLED

    @property
    def backward(self):
        return self.direction == "forward+backward"


def case_id(case):
    """The test's id, made for ``-k``.

    >>> case_id(Case("gaussian_kl", "eager", 64, 16, "float32", "forward"))
    'gaussian_kl-eager-64-16-float32-forward'
    >>> case_id(Case("iwae_step", "eager", 64, 16, "float32", "forward+backward", 8))
    'iwae_step-eager-K8-64-16-float32-forward+backward'
    >>> case_id(Case("pyro_step", "eager", 64, 32, "float32", "forward+backward"))
    'drop_in-pyro_step-eager-64-32-float32-forward+backward'
    """
    parts = list(case)
    if isinstance(case, Case):
        samples = parts.pop()
        if case.op in SAMPLED:
            parts.insert(2, f"K{samples}")
        if case.op in DROP_INS:
            parts.insert(0, "drop_in")
    return "-".join(map(str, parts))


def coarse_first(values):
    """Ends first, then the middle: a sweep that is cut short still spans its grid.

    >>> coarse_first((8, 32, 128, 512, 1024))
    [1024, 8, 128, 32, 512]
    """
    ends = [values[-1], values[0]] if len(values) > 1 else list(values)
    inner = sorted(values[1:-1], key=lambda v: abs(values.index(v) - len(values) // 2))
    return ends + inner


def shapes(grid):
    """All (batch, latent) of a grid, coarse first: the largest problem is the very first."""
    batches, latents = coarse_first(grid.batches), coarse_first(grid.latents)
    pairs = [(b, d) for b in batches for d in latents]
    return sorted(pairs, key=lambda p: max(batches.index(p[0]), latents.index(p[1])))


def sweep(grid, providers_of):
    """All cases; the providers of a cell follow each other, to meet the same machine state.

    ``providers_of(op)`` names the providers that have this operation.
    """
    return [
        Case(op, provider, batch, latent, dtype, direction)
        for batch, latent in shapes(grid)
        for op in OPERATIONS
        for dtype in grid.dtypes
        for direction in DIRECTIONS
        for provider in providers_of(op)
    ]


def largest_tensor(op, samples, batch, latent):
    """Elements of the largest tensor of an operation on K samples."""
    return samples * batch * (latent if op == "iwae_encoder" else max(latent, EVENTS))


def sample_cells(op, grid):
    """[[(K, batch, latent, dtype), ...], ...]: a list a shape, the published one first.

    Its greatest K come first, so that a sweep that is cut short spans all K of one shape.
    """
    return [
        [
            (samples, batch, latent, dtype)
            for dtype in grid.dtypes
            for samples in coarse_first(grid.samples)
            if largest_tensor(op, samples, batch, latent) <= grid.limit
        ]
        for batch, latent in shapes_in_order(grid)
    ]


def shapes_in_order(grid):
    """All (batch, latent) of a SampleGrid, by how far down its lists they are."""
    pairs = [(i, j) for i in range(len(grid.batches)) for j in range(len(grid.latents))]
    return [(grid.batches[i], grid.latents[j]) for i, j in sorted(pairs, key=lambda p: (sum(p), p))]


def sample_sweep(grids, providers_of):
    """All cases of the operations on K samples, the operations shape by shape in turn.

    The decoder follows each step: the two are of one machine state, as their difference asks.
    """
    cases = []
    for turn in zip_longest(*(sample_cells(op, grid) for op, grid in grids.items())):
        for op, cells in zip(grids, turn, strict=True):
            for samples, batch, latent, dtype in cells or ():
                for name in (op, "decoder") if op == "iwae_step" else (op,):
                    cases += [
                        Case(name, provider, batch, latent, dtype, DIRECTIONS[0], samples)
                        for provider in providers_of(name)
                    ]
    return cases


def drop_in_sweep(grid, providers_of):
    """All cases of the drop-ins, a loss after the other."""
    return [
        Case(op, provider, batch, DROP_IN_LATENTS, dtype, DIRECTIONS[0])
        for op in DROP_INS
        for batch in coarse_first(grid.batches)
        if op != "pyro_step" or batch <= PYRO_MOST
        for dtype in grid.dtypes
        if op not in DROP_INS_IN_FLOAT32 or dtype == "float32"
        for provider in providers_of(op)
    ]


def shape_of(name, case):
    """The shape of an input."""
    batch, latent = case.batch, case.latent
    shapes_of = {
        "z": (case.samples, batch, latent),
        "weight1": (HIDDEN, latent),
        "bias1": (HIDDEN,),
        "weight2": (EVENTS, HIDDEN),
        "bias2": (EVENTS,),
    }
    return shapes_of.get(name, (batch, EVENTS if name in EVENT_TENSORS else latent))


def scaled(name, value):
    """A standard normal as an encoder, or a decoder, would have it."""
    if name == "logvar":
        return 0.5 * value - 1
    if name == "probabilities":
        return value.sigmoid()
    if name.endswith("variance"):
        return (0.5 * value - 1).exp()
    if name in ("binary", "pixels"):
        return (value > 0).float()
    if name == "weight1":
        return value / value.shape[1] ** 0.5
    # Small: the samples' log likelihoods differ by some nats, as they do after training. With
    # ten times the weight one sample would take all, and the gradient hang on its rounding.
    if name == "weight2":
        return 0.1 * value / value.shape[1] ** 0.5
    return 0.1 * value if name.startswith("bias") else value


def make_inputs(case, device, seed):
    """Random inputs in the operation's order: trained-encoder-like, no special values."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for name in ALL[case.op].inputs:
        value = torch.randn(shape_of(name, case), generator=generator, device=device)
        value = scaled(name, value).to(getattr(torch, case.dtype))
        wanted = case.backward and name in ALL[case.op].gradients
        tensors.append(value.requires_grad_(wanted))
    return tensors


def make_upstream(case, device, seed):
    """Random gradients of the outputs: none of them 1, which flatters; None where there is none."""
    import torch

    generator = torch.Generator(device).manual_seed(seed + 1)
    wide = getattr(torch, case.dtype)
    samples = (case.samples, case.batch)
    kinds = {
        "rows": ((case.batch,), torch.float32),
        "latent": ((case.batch, case.latent), wide),
        "samples": ((*samples, case.latent), wide),
        "sample rows": (samples, torch.float32),
        "sample events": ((*samples, EVENTS), wide),
    }
    gradients = []
    for kind in ALL[case.op].outputs:
        if kind not in kinds:
            gradients.append(None)
            continue
        shape, dtype = kinds[kind]
        gradients.append(torch.randn(shape, generator=generator, device=device).to(dtype))
    return gradients
