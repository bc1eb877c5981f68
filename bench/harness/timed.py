"""A case of an operation under pytest-benchmark: checked, then timed by every clock."""

import pytest

from . import clock, measure, oracle, quiet
from .cases import case_id
from .machine import DEVICE
from .providers import OURS


def time_case(benchmark, run, operation, case):
    run.skip_if_spent(case_id(case))
    # Before anything is timed: a large copy throws the caches out.
    run.ceiling()
    shape = f"{case.samples}x{case.batch}x{case.latent}"
    benchmark.group = f"{case.op} {shape} {case.dtype} {case.direction}"
    info = benchmark.extra_info
    info.update(case._asdict(), status="right")
    prepared = prepare(operation, case, benchmark, run)
    info["error"] = prepared.error
    info["compile_seconds"] = prepared.compile_seconds
    info["clock"] = "device" if DEVICE == "cuda" else "host"
    info["peak_bytes"] = measure.peak_memory(prepared)

    interrupted = quiet.preemptions()
    rounds = clock.rounds_for(run.grid.seconds, prepared.seconds, run.grid.rounds)
    benchmark.pedantic(prepared.call, setup=measure.round_setup(prepared, run.quiet), rounds=rounds)
    if benchmark.disabled:
        return
    info["preemptions"] = quiet.preemptions() - interrupted
    median = benchmark.stats.stats.median
    info.update(measure.bandwidth(operation.floor(case), median, run.ceiling()))
    info.update(measure.other_clocks(prepared, run.grid))


def prepare(operation, case, benchmark, run):
    """A provider that is wrong, or does not run here, gets a report and no time.

    Our own is a failure of the suite then; another's is not, but is shown in the summary.
    """
    try:
        return measure.Prepared(operation, case, DEVICE)
    except oracle.WrongResultError as wrong:
        status, reason = "wrong", str(wrong)
    except Exception as error:
        if case.provider in OURS:
            raise
        status, reason = "failed", f"{type(error).__name__}: {first_line(error)}"
    benchmark.extra_info.update(status=status, reason=reason)
    run.not_timed.append(dict(benchmark.extra_info))
    outcome = pytest.fail if case.provider in OURS else pytest.skip
    outcome(f"{status}, not timed: {reason}")


def first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
