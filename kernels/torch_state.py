"""The state of torch that has no public name: one predicate per private name.

Every other module asks here. A newer torch may lack a name; each predicate says what it then
answers. Most answer yes: torch must see the call. Ops then go through torch's dispatcher and its
public ``apply``, and "auto" takes the reference on a CPU. That is slower, but correct.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function, forward_ad


def private(module: Any, name: str) -> Callable[..., Any]:
    """A function of torch's, or one that always returns True where there is none."""
    return getattr(module, name, lambda *_: True)


# How many modes of __torch_dispatch__ are active: fake tensors, make_fx, export, FLOP counters.
dispatch_modes = private(torch._C, "_len_torch_dispatch_stack")
# The state of torch.jit.trace, None where it does not trace.
tracing = private(torch._C, "_get_tracing_state")
# Whether a transform of torch.func is active.
transforming = private(torch._C, "_are_functorch_transforms_active")
# Whether a tensor stands for the batch of torch.autograd.grad's ``is_grads_batched``.
is_batched = private(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor")


SAYS_TRANSFORMS = hasattr(torch._C, "_are_functorch_transforms_active")


def surely_transforming() -> bool:
    """``transforming``, but False where torch does not say: for code that refuses transforms."""
    return SAYS_TRANSFORMS and transforming()


def forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open; True where torch does not say."""
    return getattr(forward_ad, "_current_level", 0) >= 0


# ``function.apply`` without its search for defaults and dead wrappers, a sixth of a small call.
HAS_BARE_APPLY = hasattr(super(Function, Function), "apply")


def bare_apply(function: Any, *arguments: Any) -> Any:
    """``function.apply`` outside of torch.func; the public one where torch has no other."""
    if HAS_BARE_APPLY:
        return super(Function, function).apply(*arguments)
    return function.apply(*arguments)


def function_of(ctx: Any) -> Any:
    """The autograd function that a context belongs to; None under torch.func, or if it is unknown.

    Without it there are first derivatives only.
    """
    return getattr(ctx, "_forward_cls", None)


def constant_in_graphs(function: Any) -> Any:
    """``torch.compiler.assume_constant_result``, which would import the compiler right here."""
    function._dynamo_marked_constant = True
    return function


def forget(library: Any) -> None:
    """Undo the registrations of a torch.library.Library, as torch does only at its end."""
    destroy = getattr(library, "_destroy", None)
    if destroy is not None:
        destroy()
