"""The largest K whose training step fits into the memory of a GPU, or into a stated budget.

On a GPU K is doubled until a step runs out of memory. Then the gap is halved until it is a
sixteenth. A CPU cannot come back from running out of memory. There the peaks of two small K give a
line, and the K where this line meets the budget is run, and counted again.
"""

import functools
import gc

import torch

from ..harness import functions, measure, memory, oracle
from ..harness.operation import make_inputs
from ..harness.providers import COMPILED, PROVIDERS
from . import cases
from .entries import ENTRIES

OP = "iwae_step"
STEP = ENTRIES[OP]
SHAPE = {"cpu": (64, 64), "cuda": (1024, 64)}  # batch, latents: one that the charts show
BUDGET = {"smoke": 2**25, "default": 2**28, "full": 2**28}  # bytes, on a CPU
PROBES = (8, 24)  # multiples of the chunks
GAP = 16
# Where memory does not grow with K by more than its log weights nothing stops it but time.
MOST = {"cpu": {"smoke": 64, "default": 1024, "full": 1024}, "cuda": 2**16}
CHECKED = 8


def names(device):
    """All providers except CUDA-graph trees, which would have to be recorded for every K."""
    return [name for name in STEP.provider_names(device) if name != "compile-reduce-overhead"]


def case_of(provider, device, samples):
    return cases.case_of(OP, provider, samples, *SHAPE[device], "float32")


@functools.cache
def compiled(provider):
    """With symbolic sizes on a GPU too, or compiling for each K would take all the time."""
    torch._dynamo.reset()
    options = PROVIDERS[provider].compile
    return torch.compile(STEP.providers["eager"], fullgraph=True, dynamic=True, **options)


def function_of(provider, device, samples):
    if device == "cuda" and provider in COMPILED:
        return functools.partial(compiled(provider), samples=samples)
    return functions.get(provider, STEP, device, samples)


def out_of_memory(error):
    """Whether this is what torch, Triton or cuBLAS say where there is not enough memory."""
    text = str(error).lower()
    known = ("out of memory", "alloc_failed")
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in text for words in known)


class Step:
    """The step of a provider for any K, on the same inputs."""

    def __init__(self, provider, device):
        self.provider, self.device = provider, device
        self.inputs = make_inputs(STEP, case_of(provider, device, 1), device, seed=0)

    def check(self):
        """Raises oracle.WrongResultError where the provider is not right."""
        case = case_of(self.provider, self.device, CHECKED)
        timed = function_of(self.provider, self.device, CHECKED)
        function = functions.get_checked(self.provider, STEP, timed, CHECKED)
        return oracle.check(STEP, case, function, self.inputs, [None, None])

    def run(self, samples):
        function = function_of(self.provider, self.device, samples)
        oracle.backward(function(*self.inputs), self.inputs, [None, None])

    def peak(self, samples):
        """Bytes on top of the inputs; the check was the call in which compilers compile."""
        return memory.peak_bytes(lambda _: self.run(samples), None, self.device)

    def fits(self, samples):
        """Whether the GPU has the memory; whatever the try left behind is given back."""
        enough = True
        try:
            self.run(samples)
            torch.cuda.synchronize()
        except RuntimeError as error:  # OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            enough = False
        # Only here is the exception gone, and with its traceback the tensors of the try.
        gc.collect()
        torch.cuda.empty_cache()
        return enough


def by_trying(fits, most):
    """(largest K, K tried, why it ended there), by doubling and then halving the gap."""
    tried, samples = [], 1

    def attempt(count):
        tried.append(count)
        return fits(count)

    while attempt(samples):
        if samples >= most:
            return samples, tried, "not reached"
        samples *= 2
    low, high = samples // 2, samples
    while high - low > max(1, low // GAP):
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle) else (low, middle)
    return low, tried, "memory"


def by_counting(peak, budget, most):
    """The same from peaks in bytes, and the peak at the largest K.

    Where the line is off by a little, a little is taken off K; more than that is an error.
    """
    few, many = PROBES
    slope = (peak(many) - peak(few)) / (many - few)
    fixed = peak(few) - slope * few
    tried = [few, many]
    samples = int((budget - fixed) / slope) if slope > 0 else most
    if samples >= most:
        return most, [*tried, most], "not reached", peak(most)
    for _ in range(3):
        tried.append(samples)
        bytes_ = peak(samples)
        if bytes_ <= budget:
            return samples, tried, "memory", bytes_
        samples -= max(1, samples // 500)
    raise RuntimeError(f"peak memory is not linear in K: {bytes_} bytes at K = {tried[-1]}")


def find(provider, device, grid):
    """extra_info of the largest K of a provider. Raises WrongResultError where it is wrong."""
    measure.forget_inputs()
    step = Step(provider, device)
    error = step.check()
    if device == "cuda":
        samples, tried, ended = by_trying(step.fits, MOST["cuda"])
        peak = step.peak(samples)
        limit = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        limit = BUDGET[grid]
        counted = functools.cache(step.peak)
        samples, tried, ended, peak = by_counting(counted, limit, MOST["cpu"][grid])
    found = {"samples": samples, "tried": tried, "ended": ended, "bytes": peak, "error": error}
    return step, {**found, "limit": limit, "budget": device == "cpu"}
