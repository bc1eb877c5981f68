"""``declare`` makes an op known to torch and to all backends.

``declare`` registers ``fused_elbo::name`` and ``fused_elbo::name_backward`` and makes one autograd
function of the two. A backend has one module per family of ops. Its launchers have the names and
arguments of the ops. The module is imported at the first call.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .backends import Backend, backend_of, load
from .torch_state import (
    bare_apply,
    dispatch_modes,
    forget,
    forward_mode,
    function_of,
    is_batched,
    tracing,
    transforming,
)

NAMESPACE: Any = torch.ops.fused_elbo
# Where the package is imported anew, the ops of the import before give up their names.
if "library" in vars(NAMESPACE):
    forget(NAMESPACE.library)
LIBRARY = NAMESPACE.library = torch.library.Library("fused_elbo", "DEF")
Parameter = torch.nn.Parameter
is_compiling, grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
PLAIN = {bool, int, float, str, list, tuple}
OPS: dict[str, "Op"] = {}  # the differentiable ones, by name

Run = Callable[..., Any]  # an op, a launcher or a fake: its arguments are those of a schema
Find = Callable[[Backend, str, str], Run]  # of (backend, family, name of the op)


@functools.cache
def launcher(backend: Backend, family: str, name: str) -> Run:
    """The launcher of an op in a backend: a function with the op's name and arguments."""
    return getattr(load(backend, family), name)


@functools.cache
def implementation(find: Find, backend: Backend, family: str, name: str) -> Run:
    """The function that runs an op on a backend: ``find`` finds or makes it."""
    return find(backend, family, name)


def register(family: str, schema: str, fake: Run, find: Find = launcher) -> Run:
    """Define an opaque functional op, with one implementation for all devices and one for shapes.

    ``find(backend, family, name)`` returns a backend's implementation. The result is a function
    that calls the implementation directly, or through torch where torch must see the op.
    """
    name = schema.partition("(")[0]

    def launch(*arguments: Any) -> Any:
        for first in arguments:
            if first is not None:
                break
        return implementation(find, backend_of(first), family, name)(*arguments)

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, launch, "CompositeExplicitAutograd")
    LIBRARY.impl(name, fake, "Meta")
    torch.library.register_vmap(f"fused_elbo::{name}", no_vmap, lib=LIBRARY)

    @functools.wraps(fake)  # autograd functions are asked for their signature
    def call(*arguments: Any) -> Any:
        if is_compiling() or torch_must_see(arguments):
            return getattr(torch.ops.fused_elbo, name).default(*arguments)
        return launch(*arguments)

    return call


def no_vmap(info: Any, in_dims: Any, *arguments: Any) -> NoReturn:
    raise RuntimeError(
        "the kernels of fused_elbo do not run under torch.func.vmap, nor jacrev and hessian, which "
        "use it: they take batches [..., D] as they are; for those, and for per-example gradients, "
        "pass impl='reference'"
    )


def torch_must_see(arguments: Iterable[Any]) -> bool:
    """Whether torch must see the call: it is traced or transformed, or a tensor holds no numbers.

    That is so under modes of __torch_dispatch__ (fake tensors, make_fx, export, counters of flops),
    torch.jit.trace and torch.func; for subclasses of Tensor, symbolic numbers, batched gradients
    and the meta device; and for a view with a pending sign, whose memory holds other numbers.
    """
    if dispatch_modes() > 0 or tracing() is not None or transforming():
        return True
    for argument in arguments:
        if argument is None:
            continue
        kind = type(argument)
        if kind is Tensor or kind is Parameter:
            if argument.is_neg() or argument.is_meta or is_batched(argument):
                return True
        elif kind not in PLAIN:
            return True
    return False


class Op:
    """A differentiable op. A call is recorded by autograd; ``forward`` and ``backward`` are not.

    Args:
        gradients: the positions of the arguments that are differentiable.
        results: how many leading outputs are returned to the caller; None if the op returns a
            single tensor or tuple.
    """

    __name__: str  # that of the declared function

    def __init__(
        self,
        forward: Run,
        backward: Run,
        function: type["KernelFunction"],
        gradients: Sequence[int],
        results: int | None = None,
    ) -> None:
        self.forward, self.backward, self.function = forward, backward, function
        self.gradients, self.results = gradients, results

    def __call__(self, *arguments: Any) -> Any:
        if differentiated(arguments):
            found = record(self.function, *arguments)
        else:
            found = self.forward(*arguments)
        if self.results is None:
            return found
        return found[0] if self.results == 1 else found[: self.results]


def differentiated(arguments: Iterable[Any]) -> bool:
    """Whether a derivative may be asked for, in reverse or forward mode, or by a compiler."""
    if grad_enabled():
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                return True
    return is_compiling() or transforming() or forward_mode()


def record(function: type["KernelFunction"], *arguments: Any) -> Any:
    """``function.apply``, as fast as the circumstances allow."""
    if is_compiling():
        return function.apply(*arguments)
    try:
        if transforming():
            return function.apply(*arguments)
        return bare_apply(function, *arguments)
    except NotImplementedError as error:  # torch raises it: the compiler takes no jvp of our own
        if "jvp" not in str(error):
            raise
        raise RuntimeError(
            "the kernels of fused_elbo have no forward-mode derivatives (jvp, jacfwd, hessian): "
            "pass impl='reference'"
        ) from error


def declare(
    family: str,
    schema: str,
    *,
    gradients: Sequence[str] = (),
    saved: Sequence[str] | None = None,
    like: dict[str, str] | None = None,
    results: Sequence[str] | None = None,
    kept: str | None = None,
    launchers: tuple[Find, ...] = (launcher, launcher),
) -> Callable[[Run], Any]:
    """Make an op from its schema. The decorated function returns empty results: shapes and dtypes.

    Args:
        family: the module of a backend that has the launchers.
        schema: as torch.library has it. Tensors come first, and results have names.
        gradients: the arguments that have gradients. Without any, the op has no backward and is
            returned as the bare forward.
        saved: the arguments that backward takes; by default all.
        like: maps an argument that is not saved to a saved one of the same shape, so that backward
            can allocate its gradient.
        results: for an op that returns a list, the names of those that the caller gets.
        kept: the name of one more result, which only backward gets.
        launchers: two functions that find the launcher of the op and that of its backward in a
            backend. ``likelihoods`` has other pairs.
    """

    def decorate(fake: Run) -> Any:
        forward = register(family, schema, fake, launchers[0])
        if not gradients:
            return forward
        name, types, outputs = parse(schema)
        outputs = list(results or outputs)
        count = len(results) if results else None
        names = list(types)
        inputs = names if saved is None else saved
        sources = [(like or {}).get(gradient, gradient) for gradient in gradients]
        upstream = "Tensor" if len(outputs) == 1 else "Tensor?"
        taken = [f"{upstream} d{output}" for output in outputs]
        taken += [f"{types[argument]} {argument}" for argument in inputs]
        taken += [f"Tensor? {kept}"] if kept else []
        backward_schema = f"{name}_backward({', '.join(taken)}, bool[] needs) -> Tensor[]"

        def backward_fake(*arguments: Any) -> list[Tensor]:
            *given, needs = arguments
            named = dict(zip(inputs, given[len(outputs) :], strict=not kept))
            return gradients_like([named[source] for source in sources], needs)

        backward = register(family, backward_schema, backward_fake, launchers[1])
        positions = [names.index(argument) for argument in gradients]
        function = autograd_function(
            fake.__name__,
            forward,
            backward,
            saved=[names.index(argument) for argument in inputs],
            tensors=sum(types[argument].startswith("Tensor") for argument in inputs),
            gradients=positions,
            sources=[names.index(source) for source in sources],
            arguments=len(names),
            results=count,
            keeps=kept is not None,
        )
        OPS[name] = Op(forward, backward, function, positions, count)
        return functools.update_wrapper(OPS[name], fake)

    return decorate


def as_tuple(forward: Run) -> Run:
    """The function with a tuple for its list, which is what autograd takes."""

    @functools.wraps(forward)
    def call(*arguments: Any) -> tuple[Any, ...]:
        return tuple(forward(*arguments))

    return call


def parse(schema: str) -> tuple[str, dict[str, str], list[str]]:
    """(name, {argument: type}, names of the results) of 'f(Tensor a, int b) -> (Tensor c)'."""
    name, rest = schema.split("(", 1)
    arguments, results = rest.split(") -> ")
    types = {n: type_ for type_, n in (pair.rsplit(" ", 1) for pair in arguments.split(", "))}
    return name, types, [pair.split()[-1] for pair in results.strip("()").split(", ")]


def autograd_function(
    name: str,
    forward: Run,
    backward: Run,
    *,
    saved: list[int],
    tensors: int,
    gradients: list[int],
    sources: list[int],
    arguments: int,
    results: int | None,
    keeps: bool,
) -> type["KernelFunction"]:
    """The autograd function of the op ``name``, which has so many ``arguments``.

    Backward takes the arguments at the positions ``saved``, the first ``tensors`` of which are
    tensors. Those at the positions ``gradients`` have gradients, in the shapes of the arguments at
    the positions ``sources``.
    """
    count = len(gradients)
    others = (None,) * (arguments - count)
    first = gradients == list(range(count))
    all_saved = saved == list(range(arguments))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        kept = inputs if all_saved else [inputs[position] for position in saved]
        ctx.options = kept[tensors:]
        hidden = output[results:] if keeps else ()
        if hidden:  # torch.compile misreads a call without arguments
            ctx.mark_non_differentiable(*hidden)
        ctx.save_for_backward(*kept[:tensors], *hidden)
        ctx.set_materialize_grads(False)

    def saved_of(ctx: Any) -> tuple[Any, ...]:
        """The saved arguments; then, if the op can keep a result, that result or None."""
        found = ctx.saved_tensors
        if not keeps:
            return *found, *ctx.options
        return *found[:tensors], *ctx.options, found[tensors] if len(found) > tensors else None

    def arguments_of(ctx: Any) -> list[Any]:
        values: list[Any] = [None] * arguments
        for position, value in zip(saved, saved_of(ctx), strict=not keeps):
            values[position] = value
        for position, source in zip(gradients, sources, strict=True):
            if position not in saved:  # backward does not depend on its value
                values[position] = torch.zeros_like(values[source]).requires_grad_()
        return values

    @once_differentiable
    def differentiate(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        for gradient in upstream:
            if gradient is not None:
                break
        else:
            return (None,) * arguments
        if first:
            needs = ctx.needs_input_grad[:count]
            found = backward(*upstream[:results], *saved_of(ctx), needs)
            return *scatter_gradients(found, needs), *others
        needs = [ctx.needs_input_grad[position] for position in gradients]
        found = backward(*upstream[:results], *saved_of(ctx), needs)
        return at_positions(scatter_gradients(found, needs), gradients, arguments)

    methods: dict[str, Any] = {
        "forward": forward if results is None else as_tuple(forward),
        "setup_context": setup_context,
        "backward": differentiate,
        "arguments": arguments_of,
    }
    static = {key: staticmethod(method) for key, method in methods.items()}
    metaclass: Any = type(KernelFunction)
    return metaclass(name, (KernelFunction,), static)


def gradients_like(tensors: Iterable[Tensor], needs: Iterable[bool]) -> list[Tensor]:
    """The wanted gradients, empty and contiguous: a backward op's result, for its fake."""
    layout = torch.contiguous_format
    wanted = (t for t, needed in zip(tensors, needs, strict=True) if needed)
    return [torch.empty_like(t, memory_format=layout) for t in wanted]


def scatter_gradients(
    gradients: Sequence[Tensor | None], needs: Sequence[bool]
) -> Sequence[Tensor | None]:
    """One entry per input: its gradient where one was computed, else None."""
    if len(gradients) == len(needs):
        return gradients
    computed = iter(gradients)
    return [next(computed) if needed else None for needed in needs]


def at_positions(values: Iterable[Any], positions: Iterable[int], count: int) -> tuple[Any, ...]:
    """A tuple of ``count``, with the values at these positions and None elsewhere."""
    result: list[Any] = [None] * count
    for position, value in zip(positions, values, strict=True):
        result[position] = value
    return tuple(result)


class SecondDerivative(torch.autograd.Function):
    """The identity on a gradient; it raises an error when it is differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(
            "the kernels of fused_elbo have first derivatives only: "
            "for a double backward pass impl='reference'"
        )


def once_differentiable(backward: Run) -> Run:
    """Mark a backward whose result must not be differentiated again, except through a twin.

    torch's decorator of this name looks at the upstream gradients only. With a constant one, as
    that of a plain sum, it silently drops the second derivative.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *upstream: Tensor | None) -> Any:
        again = grad_enabled()
        if not is_compiling() and twin_wanted(ctx, upstream, again):
            return tuple(through_twin(ctx, upstream, create_graph=again))
        if not again:
            return backward(ctx, *upstream)
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        tensors = (t for t in (*ctx.saved_tensors, *upstream) if t is not None)
        sources = [t for t in tensors if t.requires_grad]
        if not sources:
            return gradients
        return tuple(
            None if gradient is None else SecondDerivative.apply(gradient, *sources)
            for gradient in gradients
        )

    return wrapper


def twin_wanted(ctx: Any, upstream: Iterable[Tensor | None], again: bool) -> bool:
    """Whether the twin must compute the gradients: to differentiate them again, or in a batch."""
    for given in upstream:
        if given is not None and (again or is_batched(given)):
            twin = getattr(function_of(ctx), "twin", None)
            return twin is not None and backend_of(given).differentiates_again
    return False


def through_twin(
    ctx: Any, upstream: Iterable[Tensor | None], create_graph: bool
) -> Sequence[Tensor | None]:
    """The gradients by autograd, which can differentiate them again and take batches of them."""
    with torch.enable_grad():
        # Views, at which autograd stops: one argument may be another one, or a function of it.
        arguments = [
            a.view_as(a) if isinstance(a, torch.Tensor) else a
            for a in function_of(ctx).arguments(ctx)
        ]
        outputs = function_of(ctx).twin(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(o, u) for o, u in zip(outputs, upstream, strict=False) if u is not None]
    outputs, upstream = zip(*pairs, strict=True)
    wanted = [a for a, need in zip(arguments, ctx.needs_input_grad, strict=True) if need]
    found = torch.autograd.grad(
        outputs, wanted, upstream, create_graph=create_graph, allow_unused=True
    )
    return scatter_gradients(found, ctx.needs_input_grad)


class KernelFunction(torch.autograd.Function):
    """An autograd function over the ops above: first derivatives, no vmap.

    On CPUs, code that was written for the reference must go on working. There, second derivatives
    and batched gradients are those of ``twin``, the same function in PyTorch, at
    ``arguments(ctx)``.
    """

    twin: Any = None

    def __init_subclass__(cls) -> None:
        # apply() asks for the signature at every call; to find it takes a fifth of the host's time.
        forward: Any = cls.forward
        forward.__signature__ = inspect.signature(forward)

    @staticmethod
    def arguments(ctx: Any) -> Sequence[Any]:
        """The arguments of forward, from what was saved."""
        raise NotImplementedError

    vmap = staticmethod(no_vmap)
