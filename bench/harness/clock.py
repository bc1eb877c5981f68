"""The clocks. On a GPU three, each for a question of its own; on a CPU one.

``device``  CUDA events around one call, cold L2, no gaps: how long the kernels take. A spin
            kernel keeps the device busy until the host has queued the whole call, so that
            the host's own time is not in it.
``graph``   a CUDA graph of calls over rotating inputs, replayed: what is left when launches
            cost nothing.
``host``    perf_counter from the public call to the finished result: what a training loop
            waits for.

On a CPU there is ``host`` alone. Medians with quartiles; the number of rounds beside them.
"""

import statistics
import time

import torch

FLUSH_BYTES = 256 * 2**20  # several times any L2: 50 MB on an H100
CACHE_BYTES = {"cuda": 50 * 2**20, "cpu": 32 * 2**20}  # at least: a larger L2 is asked for
MAX_INPUT_SETS = {"cuda": 16, "cpu": 4}
COPY_BYTES = {"cuda": 2 * 2**30, "cpu": 256 * 2**20}
# Cycles of the spin kernel per second. This is above the clock of any GPU of today, so that it
# spins too long rather than too short.
SPIN_HZ = 2.2e9


class Event:
    """A stamp on the device's clock. ``later - earlier`` is in seconds, and waits."""

    def __init__(self):
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier):
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) * 1e-3


def timer(device):
    """The timer for pytest-benchmark, which only ever computes ``end - start``."""
    return Event if device == "cuda" else time.perf_counter


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def device_lives():
    """Whether the CUDA context still answers. After an illegal access every call fails."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def quartiles(samples):
    """{"median", "q1", "q3", "rounds"} in seconds."""
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "rounds": len(samples)}


def rounds_for(seconds, estimate, bounds):
    """How many rounds of ``estimate`` seconds fit into ``seconds``, within (fewest, most)."""
    fewest, most = bounds
    return int(min(max(seconds / max(estimate, 1e-9), fewest), most))


def cache_bytes(device):
    """The last cache: of a GPU as it says, and at least an H100's."""
    if device == "cpu":
        return CACHE_BYTES[device]
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return max(CACHE_BYTES[device], getattr(properties, "L2_cache_size", 0) or 0)


def input_sets(device, bytes_each):
    """How many input sets to rotate over, so that none is in the cache when its turn comes.

    That holds from some 10 MB per set on. Smaller ones fit into an L2 however many there may be.
    """
    wanted = -(-3 * cache_bytes(device) // max(bytes_each, 1))
    return min(max(wanted, 2), MAX_INPUT_SETS[device])


def host_clock(call, device, sets, seconds, bounds):
    """Wall-clock of a call, from an idle device to an idle device."""

    def once(i):
        synchronize(device)
        start = time.perf_counter()
        call(sets[i % len(sets)])
        synchronize(device)
        return time.perf_counter() - start

    estimate = min(once(i) for i in range(3))
    rounds = rounds_for(seconds, estimate, bounds)
    return quartiles([once(i) for i in range(rounds)])


def enqueue_seconds(call, sets):
    """How long the host takes to queue a call, when the device is no hindrance."""
    samples = []
    for i in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(sets[i % len(sets)])
        samples.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(samples)


class ColdStart:
    """Before a timed call on a GPU: flush the L2, then spin until the host is ahead.

    A buffer is written, and then another one read: lines that are still to be written back would be
    charged to the call. A call of over a thousand launches fills the queue, and the host is not
    ahead of it then.
    """

    _buffers = None

    def __init__(self, enqueue):
        if ColdStart._buffers is None:
            written, read = torch.zeros(2, FLUSH_BYTES // 4, device="cuda")
            ColdStart._buffers = written, read, torch.empty((), device="cuda")
        self.cycles = int((2 * enqueue + 50e-6) * SPIN_HZ)

    def __call__(self):
        written, read, greatest = ColdStart._buffers
        written.zero_()
        torch.amax(read, 0, out=greatest)
        torch.cuda._sleep(self.cycles)


def waits_for_device(call, inputs):
    """Whether a call makes the host wait. Such a call cannot be queued ahead or captured."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(inputs)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return False


def graph_clock(call, sets, seconds, bounds):
    """Seconds per call in the replay of a CUDA graph that holds one call on each input set."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for inputs in sets[:3]:
            call(inputs)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            call(inputs)

    def once():
        start = Event()
        graph.replay()
        return (Event() - start) / len(sets)

    estimate = min(once() for _ in range(3)) * len(sets)
    samples = [once() for _ in range(rounds_for(seconds, estimate, bounds))]
    graph.reset()
    return quartiles(samples)


def copy_bytes(device):
    """As large as it should be, or an eighth of a small GPU's memory."""
    if device == "cpu":
        return COPY_BYTES[device]
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return min(COPY_BYTES[device], properties.total_memory // 8)


def at_work(ask):
    """The answer of ``ask()`` while the GPU copies for about half a second."""
    source = torch.empty(copy_bytes("cuda") // 4, device="cuda")
    target = torch.empty_like(source)
    torch.cuda.synchronize()
    start = time.perf_counter()
    target.copy_(source)
    torch.cuda.synchronize()
    for _ in range(min(500, int(0.5 / (time.perf_counter() - start)) + 1)):
        target.copy_(source)
    found = ask()
    torch.cuda.synchronize()
    return found


def copy_ceiling(device):
    """Bytes per second, read plus written, of a large copy: the roof of all measurements."""
    # The CPU's pages are touched by filling; a copy of untouched ones would measure faults.
    source = torch.full((copy_bytes(device) // 4,), 1.5, device=device)
    target = torch.full_like(source, 0.5)
    samples = []
    cold = ColdStart(50e-6) if device == "cuda" else lambda: None
    for _ in range(21 if device == "cuda" else 9):
        cold()
        start = timer(device)()
        target.copy_(source)
        samples.append(timer(device)() - start)
    return 2 * source.nbytes / statistics.median(samples[2:])
