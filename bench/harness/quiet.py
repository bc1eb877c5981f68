"""On a CPU: notice when others take the processor, and wait until they are done; keep memory.

Two threads that meet at a barrier lose a whole time slice, some 8 ms, when a third wants to
run; a median of a few rounds does not survive that. A round after which the kernel reports
that it took the processor from us is followed by a wait, a minute a run in all.
"""

import ctypes
import time
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows
    resource = None

LOADAVG = Path("/proc/loadavg")
NAP = 0.004  # long enough for our own idle threads to fall asleep
SAMPLES = 3
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def preemptions():
    """How often the processor was taken from this process, all threads; 0 where unknown."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def others_run():
    """Whether another process wants to run just now; False where unknown."""
    try:
        running = LOADAVG.read_text().split()[3].partition("/")[0]
    except (OSError, IndexError):
        return False
    return int(running) > 1


def keep_freed_memory():
    """Have glibc hand out again what was freed, as it does within a long training run.

    Otherwise it returns large blocks to the system or not, as their order happens to be, and each
    of their pages then takes up to 1.7 us anew: several times what an operation takes. Blocks of
    over 32 MiB it would map one by one and always return: no block is mapped by itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        mallopt(parameter, value)


class Quiet:
    """Waits for a quiet machine, ``seconds`` in all."""

    def __init__(self, seconds):
        self.left = seconds
        self.seen = preemptions()

    def disturbed(self):
        """Whether we were interrupted since the last call."""
        before, self.seen = self.seen, preemptions()
        return self.seen > before

    def wait(self):
        """Until nobody else runs, as often as SAMPLES looks can tell."""
        start = time.monotonic()
        calm = 0
        while calm < SAMPLES and time.monotonic() - start < self.left:
            time.sleep(NAP)
            calm = 0 if others_run() else calm + 1
        self.left = max(0.0, self.left - (time.monotonic() - start))
        self.seen = preemptions()
