"""An op is declared once; here torch and all backends are told of it.

``declare`` registers ``fused_elbo::name`` and ``fused_elbo::name_backward`` and makes one autograd
function of the two. A backend is a folder whose modules, one a family of ops, have launchers under
the ops' names and with their arguments; it is imported at the first call.
"""

import functools
import importlib
import inspect
from typing import Any

import torch

LIBRARY = torch.library.Library("fused_elbo", "DEF")
PLAIN = {torch.Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list}


def backend(device):
    """The folder that has the kernels for a device; CPU tensors are for Triton's interpreter."""
    return "triton"


@functools.cache
def launcher(folder, family, name):
    return getattr(importlib.import_module(f".{folder}.{family}", __package__), name)


def register(family, schema, fake):
    """Define an opaque functional op, with one implementation for all devices and one for shapes.

    Returns what calls it: the launcher itself, or through torch where somebody else must see the
    op. The way through torch takes 2.6 us a call, this one 1.4.
    """
    name = schema.partition("(")[0]

    def launch(*arguments):
        device = next(a.device for a in arguments if a is not None)
        return launcher(backend(device), family, name)(*arguments)

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    LIBRARY.impl(name, fake, "Meta")
    op = getattr(torch.ops.fused_elbo, name).default

    @functools.wraps(fake)  # autograd functions are asked for their signature
    def call(*arguments):
        if torch.compiler.is_compiling() or watched(arguments):
            return op(*arguments)
        return launch(*arguments)

    return call


def watched(arguments):
    """Whether torch must see the call: it is traced or transformed, or a tensor holds no numbers.

    Modes of __torch_dispatch__ (fake tensors, make_fx, export, counters of flops), torch.jit.trace,
    torch.func; subclasses of Tensor and symbolic numbers; batched gradients and the meta device.
    """
    if (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or not PLAIN.issuperset(map(type, arguments))
    ):
        return True
    first = next(a for a in arguments if a is not None)
    return first.is_meta or torch._C._functorch.is_legacy_batchedtensor(first)


class Op:
    """A differentiable op: called, it is recorded by autograd; forward and backward are bare."""

    def __init__(self, forward, backward, function):
        self.forward, self.backward, self.function = forward, backward, function

    def __call__(self, *arguments):
        return self.function.apply(*arguments)


def declare(family, schema, *, gradients=(), saved=None, like=None):
    """Make an op of its schema; the decorated function returns empty results: shapes and dtypes.

    Args:
        family: the module of a backend that has the launchers.
        schema: as torch.library has them. Tensors come before all else, results have names.
        gradients: the first arguments, as far as they have gradients. Without any the op has no
            backward, and what is returned is the bare forward.
        saved: what backward takes of the arguments; by default all.
        like: for arguments that are not saved one that is, of the same shape: ``{name: other}``.
    """

    def decorate(fake):
        forward = register(family, schema, fake)
        if not gradients:
            return forward
        name, types, outputs = parse(schema)
        names = list(types)
        kept = names if saved is None else saved
        sources = [(like or {}).get(gradient, gradient) for gradient in gradients]
        upstream = "Tensor" if len(outputs) == 1 else "Tensor?"
        taken = [f"{upstream} d{output}" for output in outputs]
        taken += [f"{types[argument]} {argument}" for argument in kept]
        backward_schema = f"{name}_backward({', '.join(taken)}, bool[] needs) -> Tensor[]"

        def backward_fake(*arguments):
            *given, needs = arguments
            given = dict(zip(kept, given[len(outputs) :], strict=True))
            return gradients_like([given[source] for source in sources], needs)

        backward = register(family, backward_schema, backward_fake)
        function = autograd_function(
            fake.__name__,
            forward,
            backward,
            saved=[names.index(argument) for argument in kept],
            tensors=sum(types[argument].startswith("Tensor") for argument in kept),
            gradients=len(gradients),
            others=len(names) - len(gradients),
        )
        return functools.update_wrapper(Op(forward, backward, function), fake)

    return decorate


def parse(schema):
    """(name, {argument: type}, names of the results) of 'f(Tensor a, int b) -> (Tensor c)'."""
    name, rest = schema.split("(", 1)
    arguments, results = rest.split(") -> ")
    types = {n: type_ for type_, n in (pair.rsplit(" ", 1) for pair in arguments.split(", "))}
    return name, types, [pair.rsplit(" ", 1)[1] for pair in results.strip("()").split(", ")]


def autograd_function(name, forward, backward, *, saved, tensors, gradients, others):
    """The autograd function of the op ``name``.

    ``saved`` are the positions of what backward takes, ``tensors`` how many of it are tensors, and
    ``gradients`` and ``others`` how many arguments have a gradient and how many none.
    """

    def setup_context(ctx, inputs, output):
        kept = [inputs[position] for position in saved]
        ctx.save_for_backward(*kept[:tensors])
        ctx.options = kept[tensors:]
        ctx.set_materialize_grads(False)

    @once_differentiable
    def differentiate(ctx, *upstream):
        if all(gradient is None for gradient in upstream):
            return (None,) * (gradients + others)
        needs = ctx.needs_input_grad[:gradients]
        found = backward(*upstream, *ctx.saved_tensors, *ctx.options, list(needs))
        return *spread(found, needs), *(None,) * others

    methods = {"forward": forward, "setup_context": setup_context, "backward": differentiate}
    methods = {name: staticmethod(method) for name, method in methods.items()}
    return type(KernelFunction)(name, (KernelFunction,), methods)


def gradients_like(tensors, needs):
    """What a backward op returns, for its fake: the wanted gradients, contiguous."""
    layout = torch.contiguous_format
    wanted = (t for t, needed in zip(tensors, needs, strict=True) if needed)
    return [torch.empty_like(t, memory_format=layout) for t in wanted]


def spread(gradients, needs):
    """Lay the gradients that were computed back among the inputs, None elsewhere."""
    gradients = iter(gradients)
    return tuple(next(gradients) if needed else None for needed in needs)


class SecondDerivative(torch.autograd.Function):
    """The identity on a gradient, which refuses to be differentiated."""

    @staticmethod
    def forward(gradient, *sources):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the Triton kernels of fused_elbo have first derivatives only: "
            "for a double backward pass impl='reference'"
        )


def once_differentiable(backward):
    """Mark a backward whose result must not be differentiated again.

    torch's decorator of this name looks at the upstream gradients only: with a constant one,
    as of a plain sum, it lets the second derivative be dropped in silence.
    """

    @functools.wraps(backward)
    def wrapper(ctx, *upstream):
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():
            return gradients
        tensors = (t for t in (*ctx.saved_tensors, *upstream) if t is not None)
        sources = [t for t in tensors if t.requires_grad]
        if not sources:
            return gradients
        return tuple(
            None if gradient is None else SecondDerivative.apply(gradient, *sources)
            for gradient in gradients
        )

    return wrapper


class KernelFunction(torch.autograd.Function):
    """An autograd function over the ops above: first derivatives, no vmap."""

    def __init_subclass__(cls):
        # apply() asks for this signature at every call: a fifth of the host's time otherwise.
        forward: Any = cls.forward
        forward.__signature__ = inspect.signature(forward)

    @staticmethod
    def vmap(info, in_dims, *args):
        raise RuntimeError(
            "the Triton kernels of fused_elbo do not run under torch.func.vmap: they take "
            "batches [..., D] as they are; for per-example gradients pass impl='reference'"
        )
