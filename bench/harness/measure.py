"""One case from inputs to figures: check first, then every clock, then memory."""

import time

import pytest

from . import clock, functions, memory, oracle, quiet, runs
from .machine import DEVICE
from .operation import make_inputs, make_upstream
from .providers import OURS

# On a CPU the profiler that counts memory costs more than a small call.
CPU_MEMORY_FROM = 2**18
# A call of more seconds is warm after its first ones, and is timed SLOW_ROUNDS times.
SLOW, SLOW_ROUNDS = 0.1, 3
_cell = {}


def time_case(benchmark, run, operation, case):
    """Check and time a case; ``benchmark`` is pytest-benchmark's, ``run`` the Session."""
    run.skip_if_spent()
    # Before anything is timed: a large copy throws the caches out.
    run.ceiling()
    shape = f"{case.samples}x{case.batch}x{case.latent}"
    benchmark.group = f"{case.op} {shape} {case.dtype} {case.direction}"
    info = benchmark.extra_info
    info.update(case._asdict(), id=run.identity, status="right")
    prepared = prepare(operation, case, run)
    info["error"] = prepared.error
    info["compile_seconds"] = prepared.compile_seconds
    info["clock"] = "device" if DEVICE == "cuda" else "host"
    info["peak_bytes"] = peak_memory(prepared)

    interrupted = quiet.preemptions()
    bounds = (SLOW_ROUNDS, SLOW_ROUNDS) if prepared.slow else run.grid.rounds
    rounds = clock.rounds_for(run.grid.seconds, prepared.seconds, bounds)
    benchmark.pedantic(prepared.call, setup=round_setup(prepared, run.quiet), rounds=rounds)
    if benchmark.disabled:
        return
    info["preemptions"] = quiet.preemptions() - interrupted
    median = benchmark.stats.stats.median
    info.update(bandwidth(operation.floor(case), median, run.ceiling()))
    info.update(other_clocks(prepared, run.grid))


def prepare(operation, case, run):
    """A provider that is wrong, or does not run here, gets a report and no time.

    Our own is a failure of the suite then; another's is not, but is shown in the summary.
    """
    try:
        return Prepared(operation, case, DEVICE)
    except oracle.WrongResultError as wrong:
        status, reason = "wrong", str(wrong)
    except Exception as error:
        if case.provider in OURS:
            raise
        status, reason = "failed", runs.reason(error)
    run.leave_out(status, reason, **case._asdict())
    outcome = pytest.fail if case.provider in OURS else pytest.skip
    outcome(f"{status}, not timed: {reason}")


def input_sets(operation, case, device):
    """[(inputs, upstream gradients), ...], kept while the providers of a cell take turns."""
    key = (*case._replace(provider=""), device)
    if key not in _cell:
        _cell.clear()

        def made(seed):
            of = operation, case, device, seed
            return make_inputs(*of), make_upstream(*of)

        one = made(0)
        size = sum(t.nbytes for tensors in one for t in tensors if t is not None)
        _cell[key] = [one, *map(made, range(2, 2 * clock.input_sets(device, size), 2))]
    return _cell[key]


def forget_inputs():
    """Give the memory of the last cell back."""
    _cell.clear()
    oracle.kept_answers.cache_clear()


class Prepared:
    """A case whose provider is right and warm: ``call(inputs)`` is what gets timed."""

    def __init__(self, operation, case, device, function=None):
        """Raises oracle.WrongResultError where the provider is not right.

        ``function`` replaces the provider's own: that is how the rule is tested.
        """
        self.operation, self.case, self.device = operation, case, device
        provider = case.provider
        self.function = function or functions.get(provider, operation, device, case.samples)
        self.sets = input_sets(operation, case, device)
        first_call = self.first_call()
        checked = functions.get_checked(provider, operation, self.function, case.samples)
        self.error = oracle.check(operation, case, checked, *self.sets[0])
        self.seconds = self.wall_clock()
        if not self.slow:
            self.warm_up()
            self.seconds = min(self.wall_clock() for _ in range(3))
        self.compile_seconds = max(0.0, first_call - self.seconds)

    def first_call(self):
        """Seconds of the very first call, in which compilers compile; never timed again."""
        start = time.perf_counter()
        inputs, _ = self.sets[0]
        outputs = oracle.as_tuple(self.function(*inputs))
        if self.case.backward:
            # Gradients in the outputs' dtypes: a textbook sum in bfloat16 is a bfloat16.
            self.sets = [(i, oracle.cast_upstream(u, outputs)) for i, u in self.sets]
            oracle.backward(outputs, inputs, self.sets[0][1])
        clock.synchronize(self.device)
        return time.perf_counter() - start

    def call(self, inputs):
        """Results are dropped in the call: releasing them is part of a training step too."""
        tensors, upstream = inputs
        outputs = oracle.as_tuple(self.function(*tensors))
        if self.case.backward:
            oracle.backward(outputs, tensors, upstream)

    @property
    def slow(self):
        return self.seconds > SLOW

    def warm_up(self):
        for inputs in self.sets[: 0 if self.slow else 3]:
            self.call(inputs)
        clock.synchronize(self.device)

    def wall_clock(self):
        start = time.perf_counter()
        self.call(self.sets[0])
        clock.synchronize(self.device)
        return time.perf_counter() - start


def round_setup(prepared, calm):
    """The untimed function before each round: it gives the next inputs, and the same state of the
    machine, which is a cold device or a CPU that others leave alone."""
    sets = prepared.sets
    cold = None
    if prepared.device == "cuda":
        cold = clock.ColdStart(clock.enqueue_seconds(prepared.call, sets))
    turn = 0

    def setup():
        nonlocal turn
        turn += 1
        if cold is not None:
            cold()
        elif turn == 1 or calm.disturbed():
            calm.wait()
            prepared.warm_up()
        return (sets[turn % len(sets)],), {}

    return setup


def other_clocks(prepared, grid):
    """extra_info of the clocks that are not pytest-benchmark's own: on a GPU, host and graph."""
    if prepared.device != "cuda":
        return {}
    call, sets = prepared.call, prepared.sets
    limits = (grid.seconds, grid.rounds)
    info = {
        "host": clock.host_clock(call, "cuda", sets, *limits),
        "host_waits": clock.waits_for_device(call, sets[0]),
        "input_sets": len(sets),
    }
    if info["host_waits"]:
        info["graph_absent"] = "the call makes the host wait for the device"
    elif prepared.case.provider == "compile-reduce-overhead":
        info["graph_absent"] = "the call is a CUDA graph already"
    else:
        try:
            info["graph"] = clock.graph_clock(call, sets, *limits)
        except RuntimeError as error:
            info["graph_absent"] = f"capture failed: {error}"[:200]
    return info


def peak_memory(prepared):
    """Bytes, or None where they are not counted.

    Small cases on a CPU are not worth the time of counting. The memory of CUDA-graph trees was
    taken when they were recorded.
    """
    case = prepared.case
    if case.provider == "compile-reduce-overhead":
        return None
    if prepared.device == "cpu":
        small = case.batch * case.latent < CPU_MEMORY_FROM
        if (small and not prepared.operation.memory_of_small) or not case.backward:
            return None
    return memory.peak_bytes(prepared.call, prepared.sets[0], prepared.device)


def bandwidth(needed, seconds, ceiling):
    """The floor's bytes, which had to move, and the bandwidth that they come to."""
    return {
        "floor_bytes": needed,
        "floor_seconds": needed / ceiling,
        "gb_per_s": needed / seconds / 1e9,
        "share_of_copy": needed / seconds / ceiling,
    }
