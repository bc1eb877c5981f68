"""An operation: one entry holds all that the benchmarks know of it."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch

from .cases import COLORS, EVENTS, GENES, HIDDEN, NUMBERS
from .providers import COMPILED, PROVIDERS

# Largest error, relative to the largest value of the oracle. A wrong formula is off by tenths. The
# textbook in bfloat16 is off by hundredths, because it rounds every intermediate to 8 bits.
TOLERANCE = {"float32": 3e-5, "bfloat16": 4e-2, "float16": 5e-3, "float64": 1e-10}


def plain(normal):
    return normal


def log_variance(normal):
    return 0.5 * normal - 1


def binary(normal):
    return (normal > 0).float()


def counts(normal):
    return (2 * normal.abs()).floor()


def sparse_counts(normal):
    """Nine in ten are 0, as of genes in a cell. Of the others six in ten are 1, 3 % above 8."""
    return (1.65 * (normal.abs() - 1.645)).exp().floor()


def classes(normal):
    """One for each row, of as many as it has columns."""
    return normal.argmax(-1)


class Input(NamedTuple):
    """A random tensor as a trained encoder or decoder would give it, without special values."""

    dims: tuple  # of "samples", "components", "batch", "latent", and those of ``shape_of``
    scale: Callable = plain  # what is made of a standard normal; integers stay what they are
    data: bool = False  # which get no gradient


ROWS, LATENTS, PIXELS = ("batch",), ("batch", "latent"), ("batch", "events")
LATENT, LOGVAR, DATA = Input(LATENTS), Input(LATENTS, log_variance), Input(LATENTS, data=True)
PIXEL = Input(PIXELS)
SPARSE_COUNTS, COLUMNS = Input(LATENTS, sparse_counts, data=True), Input(("latent",))
COUNTS, CLASSES = Input(LATENTS, counts, data=True), Input(LATENTS, classes, data=True)
BITS, PIXEL_BITS = Input(LATENTS, binary, data=True), Input(PIXELS, binary, data=True)
ENCODED = {"mu": LATENT, "logvar": LOGVAR}
# The gradients that outputs get, by kind. Other kinds have none: a "scalar" gets 1, and a sample
# that is only "shown" tells the oracle its noise.
UPSTREAM = {
    "rows": ROWS,
    "latent": LATENTS,
    "samples": ("samples", *LATENTS),
    "sample rows": ("samples", *ROWS),
    "sample events": ("samples", *PIXELS),
}
FLOAT32_SUMS = ("rows", "sample rows")
NOISY = ("latent", "samples", "shown")  # kinds of outputs that are samples


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """All functions take the inputs in their order, and return the same outputs.

    Values are per example, in nats, with every constant: that is what the oracle checks.
    Baselines are written as their users would, but not carelessly: nothing is computed twice,
    constants are Python numbers, and nothing waits for the device unless torch itself does.
    """

    inputs: dict  # Input by name
    outputs: tuple = ("rows",)  # kinds
    providers: dict  # functions by name; the compiler's are made of "eager"
    exact: Callable  # the same in float64, written anew; a sampling one takes the noise as eps
    floor: Callable  # the least bytes that a Case moves
    posterior: Callable | None = None  # (mu, logvar) of the inputs, if they have no such names
    takes_samples: bool = False  # whether functions have an argument samples=K
    checked: dict = dataclasses.field(default_factory=dict)  # for the oracle, if not as timed
    tolerance: dict = dataclasses.field(default_factory=TOLERANCE.copy)
    memory_of_small: bool = False  # peak memory is counted on a CPU for small cases too
    corners: bool = False  # timed at the smallest and largest shapes of a grid alone
    full_only: bool = False  # left out of brief grids
    few_dtypes: bool = False  # timed in a few cells of other dtypes in brief grids too
    long_row: bool = False  # timed for one long row too
    compiles: bool = True
    in_graphs: bool = False  # fused_elbo is timed inside torch.compile as well
    fullgraph: bool = True  # in one graph
    needs: str | None = None  # a package without which it is left out

    @property
    def gradients(self):
        """Names of the inputs that get one."""
        return [name for name, given in self.inputs.items() if not given.data]

    @property
    def noisy(self):
        return self.outputs[0] in NOISY

    def provider_names(self, device):
        """The providers that have this operation on this kind of device."""
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return []
        graphs = {**dict.fromkeys(COMPILED, self.compiles), "fused_elbo-compiled": self.in_graphs}
        return [
            name
            for name, provider in PROVIDERS.items()
            if device in provider.devices and graphs.get(name, name in self.providers)
        ]


def shape_of(dims, case):
    sizes = case._asdict() | {"components": case.samples, "both halves": 2 * case.latent}
    sizes |= {"events": EVENTS, "colors": COLORS, "numbers": NUMBERS, "hidden": HIDDEN}
    sizes["genes"] = GENES
    return tuple(sizes[name] for name in dims)


def make_inputs(operation, case, device, seed):
    """Random inputs in the operation's order."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = []
    for dims, scale, data in operation.inputs.values():
        normal = torch.randn(shape_of(dims, case), generator=generator, device=device)
        value = scale(normal)
        if value.is_floating_point():
            value = value.to(getattr(torch, case.dtype))
        tensors.append(value.requires_grad_(case.backward and not data))
    return tensors


def make_upstream(operation, case, device, seed):
    """Random gradients of the outputs: none of them 1, which flatters; None where there is none."""
    generator = torch.Generator(device).manual_seed(seed + 1)
    gradients = []
    for kind in operation.outputs:
        if kind not in UPSTREAM:
            gradients.append(None)
            continue
        normal = torch.randn(shape_of(UPSTREAM[kind], case), generator=generator, device=device)
        dtype = torch.float32 if kind in FLOAT32_SUMS else getattr(torch, case.dtype)
        gradients.append(normal.to(dtype))
    return gradients
