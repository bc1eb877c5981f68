"""The first nine minutes on a GPU: ``python -m bench.gpu_session OUT [--budget SECONDS]``.

STEPS is the order, with the share of each. A step is a process of its own and writes below OUT as
it goes, so nothing is lost when it hangs, is killed or leaves the device in a bad state: the next
one starts afresh. What a step does not use is left to those after it. A step that is still at work
when its time is over gets SIGTERM, and soon after SIGKILL. So all of them end within the budget.

OUT/session.json says how each step ended. Runs of the benchmarks lie in OUT/<device>/; copy that
to results/, and go on with ``make bench ARGS=--resume=results``.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from .harness import machine

BUDGET = 540  # a command of ten minutes, with a minute to spare
GRACE = 8  # seconds from SIGTERM to SIGKILL


class Step(NamedTuple):
    name: str
    share: float  # seconds of BUDGET
    command: tuple  # of Python, with {out} and {budget}


def steps_of(name):
    return ("-m", "bench.gpu_steps", name, "{out}")


def timed(suites, selected, grid="default"):
    """A part of some suites, timed."""
    options = ("--benchmark", "--benchmark-quiet", f"--grid={grid}", "--results={out}")
    folders = [f"bench/{suite}" for suite in suites.split()]
    return ("-m", "pytest", *options, "--budget={budget}", *folders, "-k", selected)


LARGEST = "16384-1024 and forward+backward"
HEADLINE = "rsample_kl or elbo_step or gaussian_kl"
SHAPES = "16384-1024 or 1024-128 or 64-16"
OUTSIDE = "not fused_elbo-compiled"
STEPS = (
    # Does it run at all? Every op once, the device awaited after each.
    Step("device", 20, steps_of("device")),
    Step("check", 95, steps_of("check")),
    Step("graphs", 30, ("-m", "pytest", "tests", "-m", "gpu", "-k", "TestOnAGpu")),
    # How fast could it be?
    Step("copy", 8, steps_of("copy")),
    Step("noise", 14, ("-m", "bench.gpu_noise", "{out}")),
    # Is it fast, where it matters most?
    Step(
        "headline",
        100,
        timed(
            "operations",
            f"({HEADLINE}) and ({SHAPES}) and forward+backward and {OUTSIDE} "
            "and not distributions and not builtin",
        ),
    ),
    Step(
        "operations",
        48,
        timed(
            "operations counts",
            f"not ({HEADLINE}) and ({LARGEST} or test_counts and 512-8000) "
            "and (eager or fused_elbo)",
        ),
    ),
    Step(
        "samples",
        60,
        timed(
            "samples",
            "(iwae_encoder and 1024-128 and (K64 or K512) or iwae_step and K64-256-64) "
            "and (eager or compile or fused_elbo)",
        ),
    ),
    Step(
        "mixtures",
        55,
        timed(
            "mixtures",
            "(K1024-1024-64 or K4096-4096-64) and forward+backward "
            "and (eager or compile-chunked or fused_elbo)",
        ),
    ),
    # The rivals that could embarrass us compile for long. All providers, for a ratio is of one run.
    Step(
        "tuned",
        75,
        timed("operations", f"(rsample_kl or elbo_step) and {LARGEST} and {OUTSIDE}", "full"),
    ),
    Step("kernels", 30, steps_of("kernels")),
)


def run(step, out, seconds):
    """How a step ended: (return code, or None where it had to be killed; whether time was up)."""
    budget = max(1, round(seconds - 2 * GRACE))
    arguments = [part.format(out=out, budget=budget) for part in step.command]
    process = subprocess.Popen([sys.executable, *arguments])
    for limit, end in ((seconds - GRACE, process.terminate), (GRACE, process.kill)):
        try:
            return process.wait(max(limit, 0)), end == process.kill
        except subprocess.TimeoutExpired:
            end()
    process.wait()
    return None, True


def session(steps, out, budget, clock=time.monotonic):
    """Run the steps one after the other; returns what OUT/session.json says of each."""
    report, start, due = {}, clock(), 0.0
    total = sum(step.share for step in steps)
    for step in steps:
        due += step.share * budget / max(total, BUDGET)
        begun = clock() - start
        print(f"{step.name} at {begun:.0f} s, until {due:.0f} s", flush=True)
        code, late = run(step, out, due - begun)
        seconds = round(clock() - start - begun, 1)
        report[step.name] = {"seconds": seconds, "returncode": code, "time_was_up": late}
        (out / "session.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [step.name for step in STEPS]
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", nargs="+", choices=names, default=names)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    options = parser.parse_args(arguments)
    if machine.DEVICE != "cuda":
        raise SystemExit(machine.why_no_gpu() or "needs a CUDA GPU")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in STEPS if step.name in options.steps]
    report = session(chosen, options.out.resolve(), options.budget)
    bad = [name for name, ended in report.items() if ended["returncode"] != 0]
    raise SystemExit(f"not as it should be: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
