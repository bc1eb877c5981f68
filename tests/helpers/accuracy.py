"""The accuracy bar, and the memory layouts it is held against.

For every output and every gradient, for every element:

    |kernel - oracle|  <=  2 max |eager - oracle|  +  ATOL eps magnitude

where eager runs in the kernel's input dtype, eps is the output dtype's and ``magnitude`` the
largest sum of the absolute values that were added up. The last term is there because eager
can be exact by luck (one element, round numbers) where the kernel is off by its last bits:
it allows ATOL = 4 roundings of the largest sum, 5e-7 of it in float32. For float16 and
bfloat16 a second, tighter bar holds the kernels to accumulation in float32: eager is then
run in float32 on the same inputs, and eps applies to the element itself, twice. Where eager
itself overflows it allows nothing.
"""

from typing import NamedTuple

import torch

from helpers.machine import INTERPRET, KERNELS, WORST_INSTRUCTIONS
from helpers.oracle import argument_shape, noise_of, random_values, upstream

# With every approximate instruction as far off as is documented a few results come to 2.2 times the
# bars that hold with correctly rounded ones.
SLACK = 2.5 if WORST_INSTRUCTIONS else 1
ATOL = 4
LOW = (torch.float16, torch.bfloat16)


def rounding(dtype):
    """The relative spacing of a dtype: twice the error of rounding to nearest.

    Triton's interpreter truncates float32 to bfloat16, where GPUs round: one more bit.
    """
    return torch.finfo(dtype).eps * (2 if INTERPRET and dtype == torch.bfloat16 else 1)


def accumulation(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


# A layout makes from values a leaf tensor and the view of it that is the argument.
def _transposed(values):
    return values.transpose(0, -1).contiguous(), lambda leaf: leaf.transpose(0, -1)


def _sliced(values):
    """Every second row and a window of columns of a tensor that is NaN elsewhere."""
    rows, *middle, cols = values.shape
    leaf = values.new_full((2 * rows + 1, *middle, cols + 3), float("nan"))
    leaf[1::2, ..., 1:-2] = values
    return leaf, lambda leaf: leaf[1::2, ..., 1:-2]


def _strided_columns(values):
    leaf = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), float("nan"))
    leaf[..., ::2] = values
    return leaf, lambda leaf: leaf[..., ::2]


def _expanded_rows(values):
    shape = values.shape
    return values[:1].clone(), lambda leaf: leaf.expand(shape)


def _expanded_columns(values):
    shape = values.shape
    return values[..., :1].clone(), lambda leaf: leaf.expand(shape)


LAYOUTS = {
    "contiguous": lambda values: (values.clone(), lambda leaf: leaf),
    "transposed": _transposed,
    "sliced": _sliced,
    "strided_columns": _strided_columns,
    "expanded_rows": _expanded_rows,
    "expanded_columns": _expanded_columns,
}


def lay(values, layout):
    """(leaf, view) of values in a layout, or what is nearest to it in fewer dimensions."""
    if values.dim() == 0:
        layout = "contiguous"
    elif values.dim() == 1 and layout == "sliced":
        layout = "strided_columns"
    return LAYOUTS[layout](values)


class Result(NamedTuple):
    outputs: list
    gradients: list


def magnitudes(terms):
    return sum(part.abs() for part in terms)


def run_oracle(op, leaves, views, shape, noise, upstreams):
    """Float64 results, and the magnitude behind each."""
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    # Elementwise: what is added up into the gradient of a broadcast argument is seen.
    full = [view(leaf) for leaf, view in zip(leaves, views, strict=True)]
    full = [t if t.dim() > len(shape) else t.expand(shape) for t in full]
    wide = [t.detach().requires_grad_() for t in full]
    parts = op.parts(wide, noise)
    outputs = [op.reduce(i, sum(p)) for i, p in enumerate(parts)]
    sizes = [op.reduce(i, magnitudes(p)) for i, p in enumerate(parts)]
    wide_gradients = torch.autograd.grad(
        outputs, wide, [g.double() for g in upstreams], allow_unused=True
    )
    gradients, gradient_sizes = [], []
    for leaf, target, g in zip(leaves, full, wide_gradients, strict=True):
        g = torch.zeros_like(target) if g is None else g
        gradients += torch.autograd.grad(target, leaf, g, retain_graph=True)
        gradient_sizes += torch.autograd.grad(target, leaf, g.abs())
    detached = [o.detach() for o in outputs]
    return Result(detached, gradients), Result([s.detach() for s in sizes], gradient_sizes)


def run_eager(op, leaves, views, noise, upstreams, dtype):
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    args = [view(leaf) for leaf, view in zip(leaves, views, strict=True)]
    noise = None if noise is None else noise.to(dtype)
    outputs = [op.reduce(i, t) for i, t in enumerate(op.eager(args, noise))]
    gradients = torch.autograd.grad(
        outputs, leaves, [g.to(dtype) for g in upstreams], allow_unused=True
    )
    gradients = [
        torch.zeros_like(leaf) if g is None else g
        for leaf, g in zip(leaves, gradients, strict=True)
    ]
    return Result([o.detach() for o in outputs], gradients)


def run_public(op, leaves, views, upstreams, upstream_layout, seed, impl):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    args = [view(leaf) for leaf, view in zip(leaves, views, strict=True)]
    torch.manual_seed(seed)
    outputs = op.call(args, impl)
    laid = []
    for g, output in zip(upstreams, outputs, strict=True):
        leaf, view = lay(g.to(output.dtype), upstream_layout)
        laid.append(view(leaf))
    gradients = torch.autograd.grad(outputs, leaves, laid)
    return Result([o.detach() for o in outputs], list(gradients))


def largest(t):
    t = t[torch.isfinite(t)]
    return t.max().item() if t.numel() else 0.0


def overflowed(oracle, dtype):
    """The oracle as ``dtype`` can hold it: what is beyond its range is inf."""
    return oracle.to(dtype).double()


def assert_same_nonfinite(actual, oracle, what):
    """inf, -inf and NaN where and only where the oracle, in actual's dtype, has them."""
    expected = overflowed(oracle, actual.dtype)
    actual = actual.double()
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(actual), kind(expected)), (
            f"{what}: {kind.__name__} differs: {actual} against {expected}"
        )


def assert_within_bar(actual, oracle, size, eager, eager_wide, dtype, what):
    """One output or gradient against the bars at the head of this file."""
    assert actual.shape == oracle.shape, f"{what}: {actual.shape} for {oracle.shape}"
    assert_same_nonfinite(actual, oracle, what)
    good = torch.isfinite(overflowed(oracle, actual.dtype))
    error = torch.where(good, actual.double() - oracle, 0.0).abs()
    eager_error = largest(torch.where(good, eager.double() - oracle, 0.0).abs())
    bar = 2 * eager_error + ATOL * rounding(actual.dtype) * largest(torch.where(good, size, 0.0))
    bar *= SLACK
    assert largest(error) <= bar, f"{what}: error {largest(error):.3g} above the bar {bar:.3g}"
    if dtype in LOW:
        eager_error = largest(torch.where(good, eager_wide.double() - oracle, 0.0).abs())
        bar = 2 * eager_error + ATOL * rounding(torch.float32) * largest(size)
        if actual.dtype == dtype:
            smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
            bar = bar + 2 * rounding(dtype) * size + smallest
        excess = largest(error - SLACK * bar)
        assert excess <= 0, f"{what}: {excess:.3g} above the bar of float32 accumulation"


def check(
    op, shape, dtype, layout="contiguous", upstream_layout="contiguous", *, device, values=None
):
    """Hold the kernels of ``op`` against the bar: outputs and the gradient of every argument.

    ``values`` replaces the random float64 values of some arguments.
    """
    seed = 1000 + sum(shape)
    generator = torch.Generator().manual_seed(seed)
    leaves, views = [], []
    for name in op.arguments:
        value = random_values(name, shape, generator)
        if values and name in values:
            value = values[name](value)
            assert value.shape == argument_shape(name, shape)
        leaf, view = lay(value.to(device, dtype), layout)
        leaves.append(leaf)
        views.append(view)
    noise = noise_of(op, shape, seed, device)
    shapes = [op.output_shape(i, shape) for i in range(len(op.reduced))]
    upstreams = []
    for s in shapes:
        leaf, view = lay(upstream(s, generator).to(device), upstream_layout)
        upstreams.append(view(leaf))

    actual = run_public(op, leaves, views, upstreams, upstream_layout, seed, KERNELS)
    exact, size = run_oracle(op, leaves, views, shape, noise, upstreams)
    eager = run_eager(op, leaves, views, noise, upstreams, dtype)
    wide = run_eager(op, leaves, views, noise, upstreams, accumulation(dtype))
    for i, output in enumerate(actual.outputs):
        reduced = op.reduced[i] is not None
        assert output.dtype == (accumulation(dtype) if reduced else dtype)
    for i, gradient in enumerate(actual.gradients):
        assert gradient.dtype == dtype, f"gradient of {op.arguments[i]}"
    kinds = [f"output {i}" for i in range(len(shapes))]
    kinds += [f"gradient of {name}" for name in op.arguments]
    flat = ([*r.outputs, *r.gradients] for r in (actual, exact, size, eager, wide))
    for what, a, e, s, g, w in zip(kinds, *flat, strict=True):
        assert_within_bar(a, e, s, g, w, dtype, f"{op.name}, {what}")
