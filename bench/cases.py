"""What is timed: operations, grids, and random inputs. Nothing here imports torch at the top."""

from typing import NamedTuple

# Pixels of the decoder's output in elbo_step: 28 x 28, as in every VAE tutorial.
EVENTS = 784
# The fixed log variance of gaussian_nll; not 0, which would make its scale a multiplication by 1.
FIXED_LOGVAR = -1.0

DIRECTIONS = ("forward+backward", "forward")


class Operation(NamedTuple):
    """An operation by its tensors: "latent" ones are [B, D], "event" ones [B, 784]."""

    inputs: tuple  # names, in the order of the providers' arguments
    gradients: tuple  # those that get a gradient
    outputs: tuple  # "rows" [B], "latent" [B, D] or "scalar"; scalars have gradient 1
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
EVENT_TENSORS = ("logits", "pixels")


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


class Case(NamedTuple):
    """One point of the sweep."""

    op: str
    provider: str
    batch: int
    latent: int
    dtype: str
    direction: str

    @property
    def backward(self):
        return self.direction == "forward+backward"


def case_id(case):
    """The test's id, made for ``-k``.

    >>> case_id(Case("gaussian_kl", "eager", 64, 16, "float32", "forward"))
    'gaussian_kl-eager-64-16-float32-forward'
    """
    return "-".join(map(str, case))


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


def make_inputs(case, device, seed):
    """Random inputs in the operation's order: trained-encoder-like, no special values."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for name in OPERATIONS[case.op].inputs:
        shape = (case.batch, EVENTS if name in EVENT_TENSORS else case.latent)
        value = torch.randn(shape, generator=generator, device=device)
        if name == "logvar":
            value = 0.5 * value - 1
        elif name in ("binary", "pixels"):
            value = (value > 0).float()
        value = value.to(getattr(torch, case.dtype))
        wanted = case.backward and name in OPERATIONS[case.op].gradients
        tensors.append(value.requires_grad_(wanted))
    return tensors


def make_upstream(case, device, seed):
    """Random gradients of the outputs: none of them 1, which flatters; None for a scalar."""
    import torch

    generator = torch.Generator(device).manual_seed(seed + 1)
    shape = {"rows": (case.batch,), "latent": (case.batch, case.latent)}
    dtype = {"rows": torch.float32, "latent": getattr(torch, case.dtype)}
    return [
        None
        if kind == "scalar"
        else torch.randn(shape[kind], generator=generator, device=device).to(dtype[kind])
        for kind in OPERATIONS[case.op].outputs
    ]
