"""The function of a provider for an operation: its own, or another's compiled."""

import functools

import torch

from .providers import PROVIDERS

# On a CPU the compiler's own generator is scalar code, ten times as slow as torch's.
CPU_COMPILE = {"options": {"fallback_random": True}}


@functools.cache
def symbolic(function, fullgraph=True):
    """Compiled for all sizes: those that are equal once are not so in the next cell."""
    torch.fx.experimental._config.use_duck_shape = False
    return torch.compile(function, fullgraph=fullgraph, dynamic=True, **CPU_COMPILE)


def compiled(provider, operation, device):
    """The compiled function of a provider.

    On a GPU it is compiled anew for every shape, the best that the compiler can give. On a
    CPU one function with symbolic sizes serves all shapes of an operation, or compiling
    would take most of the suite's time. ``fullgraph`` makes a graph break, or a silent fall
    back to eager at the recompile limit, an error; one original cannot do without a break.
    """
    function, fullgraph = operation.providers[PROVIDERS[provider].compiles], operation.fullgraph
    if device == "cpu":
        return symbolic(function, fullgraph)
    torch._dynamo.reset()
    torch.fx.experimental._config.use_duck_shape = True
    options = PROVIDERS[provider].compile
    return torch.compile(function, fullgraph=fullgraph, dynamic=False, **options)


def new_step(function):
    """Tell CUDA-graph trees that outputs of the last call may be written over, as users must."""

    def call(*inputs):
        torch.compiler.cudagraph_mark_step_begin()
        return function(*inputs)

    return call


def get(provider, operation, device, samples=1):
    """The function of a provider for an operation; "cpu" or "cuda" decides how to compile."""
    if PROVIDERS[provider].compile is None:
        function = operation.providers[provider]
    else:
        function = compiled(provider, operation, device)
    if operation.takes_samples:
        function = functools.partial(function, samples=samples)
    return new_step(function) if provider == "compile-reduce-overhead" else function


def get_checked(provider, operation, function, samples):
    """The function that the oracle checks: the timed one, unless it does not show its sample."""
    checked = operation.checked.get(provider)
    return functools.partial(checked, samples=samples) if checked else function
