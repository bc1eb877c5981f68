"""The first hour on a GPU: ``python -m bench.gpu_session OUT [--steps ...] [--budget SECONDS]``.

In this order, each step to OUT/<step>.json as soon as it is done:
  copy     the speed of a large copy: the roof
  noise    normals a second: loaded, torch.randn, tl.randn, tl.randn4x, and the kernels' own
  kernels  GPU kernels a call, by the profiler, every operation and provider
  check    every operation against the float64 oracle, on the device
  samples  ``pytest --benchmark`` of the operations on K samples, for most of what is left of the
           budget, into OUT/<device>/
  largest  the largest K, the same way; last of K samples, for it drives the device out of memory
  mixtures the losses that compare every sample with every component, for a part of the rest
  sweep    the other operations, for most of the rest
  drop_ins the drop-ins against what they replace, for what is then left

The budget keeps a command below ten minutes. To go on after one, copy OUT/<device>/ to
results/ and give ``--steps samples mixtures sweep drop_ins --resume results``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import triton
import triton.language as tl

from fused_elbo.kernels.triton.launch import PTX
from fused_elbo.kernels.triton.noise import normal_tile

from .drop_ins.cases import sweep as drop_in_sweep
from .drop_ins.entries import ENTRIES as DROP_INS
from .harness import clock, functions, machine, measure, oracle
from .harness.cases import GRIDS, case_id
from .harness.operation import make_inputs, make_upstream
from .harness.providers import OURS
from .mixtures.cases import sweep as mixture_sweep
from .mixtures.entries import ENTRIES as MIXTURES
from .operations.cases import sweep as operation_sweep
from .operations.entries import ENTRIES as OPERATIONS
from .samples.cases import case_of as sample_case
from .samples.entries import ENTRIES as SAMPLED

ENTRIES = OPERATIONS | SAMPLED | MIXTURES | DROP_INS
STEPS = (
    "copy", "noise", "kernels", "check", "samples", "largest", "mixtures", "sweep", "drop_ins"
)  # fmt: skip
OTHERS = (*SAMPLED, "largest", "mixtures", "drop_in")  # words that select what is not "sweep"
# Of pytest's -k, and how much of what is left each may take.
SWEEPS = {
    "samples": (" or ".join(SAMPLED), 0.6),
    "largest": ("largest", 0.5),
    "mixtures": ("mixtures", 0.4),
    "sweep": (" and ".join(f"not {name}" for name in OTHERS), 0.8),
    "drop_ins": ("drop_in", 1.0),
}
ROWS, COLS = 16384, 1024  # 16.8M elements
BLOCK = 1024
ROUNDS = 31


@triton.jit
def noise_loaded(source, out, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, tl.load(source + index))


@triton.jit
def noise_randn(seed, out, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, tl.randn(tl.load(seed), index))


@triton.jit
def noise_randn4x(seed, out, BLOCK: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    n0, n1, n2, n3 = tl.randn4x(tl.load(seed), group)
    normals = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK,))
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + index, normals)


@triton.jit
def noise_own(seed, out, COLS: tl.constexpr, PTX: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    eps = normal_tile(tl.load(seed), row, 0, 0, 1, COLS, PTX)
    column = tl.arange(0, COLS)
    tl.store(out + (row * COLS)[:, None] + column[None, :], eps)


def device_seconds(call):
    """Median device time of a call, cold L2."""
    for _ in range(3):
        call(None)
    cold = clock.ColdStart(clock.enqueue_seconds(call, [None]))
    samples = []
    for _ in range(ROUNDS):
        cold()
        start = clock.Event()
        call(None)
        samples.append(clock.Event() - start)
    return statistics.median(samples)


def step_copy():
    return {"copy_bytes_per_s": clock.copy_ceiling("cuda")}


def step_noise():
    """Seconds for 16.8M normals, and normals a second; each writes 4 bytes a normal."""
    out = torch.empty(ROWS, COLS, device="cuda")
    source = torch.randn_like(out)
    seed = torch.randint(2**31, (), dtype=torch.int64, device="cuda")
    grid = (out.numel() // BLOCK,)
    calls = {
        "loaded": lambda _: noise_loaded[grid](source, out, BLOCK=BLOCK),
        "torch.randn": lambda _: out.normal_(),
        "tl.randn": lambda _: noise_randn[grid](seed, out, BLOCK=BLOCK),
        "tl.randn4x": lambda _: noise_randn4x[grid](seed, out, BLOCK=BLOCK),
        "normal_tile": lambda _: noise_own[(ROWS,)](seed, out, COLS=COLS, PTX=PTX),
    }
    report = {}
    for name, call in calls.items():
        seconds = device_seconds(call)
        sample = out.double()
        report[name] = {
            "seconds": seconds,
            "normals_per_s": out.numel() / seconds,
            "mean": sample.mean().item(),
            "variance": sample.var().item(),
        }
    return report


def every_sampled_case(shapes, dtypes):
    """The operations on K samples at a few (K, batch, latent)."""
    return [
        sample_case(op, provider, *shape, dtype)
        for shape in shapes
        for op, operation in SAMPLED.items()
        for dtype in dtypes
        for provider in operation.provider_names("cuda")
    ]


def kernel_names(call, inputs):
    """Names of the kernels that one call runs on the device."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call(inputs)
        torch.cuda.synchronize()
    return [e.name for e in profiler.events() if e.device_type == DeviceType.CUDA]


def step_kernels():
    """Kernels a call at 4096 x 256 in float32; of K samples at 64 x 64 x 64; of mixtures and the
    drop-ins on the smoke grid."""
    report = {}
    sampled = every_sampled_case([(64, 64, 64)], ["float32"])
    # Not compiled: that would take the time of what is more important.
    others = drop_in_sweep(DROP_INS, "cuda", GRIDS["cuda", "smoke"])
    others += mixture_sweep(MIXTURES, "cuda", "smoke")
    others = [case for case in others if not case.provider.startswith("compile")]
    plain = operation_sweep(OPERATIONS, "cuda", [(4096, 256)], ["float32"])
    for case in (*sampled, *plain, *others):
        try:
            prepared = measure.Prepared(ENTRIES[case.op], case, "cuda")
            names = kernel_names(prepared.call, prepared.sets[0])
            report[case_id(case)] = {"count": len(names), "names": names}
        except Exception as error:  # one provider that fails must not end the hour
            report[case_id(case)] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return report


def step_check():
    """The largest relative error of fused_elbo, or what is wrong."""
    report = {}
    shapes = [(1, 1), (7, 31), (64, 8), (257, 100), (4096, 1024), (33, 4097)]
    of_samples = [(1, 7, 31), (3, 64, 8), (64, 33, 100), (512, 64, 64), (5, 9, 4097)]
    dtypes = ["float32", "bfloat16"]
    sampled = every_sampled_case(of_samples, dtypes)
    plain = operation_sweep(OPERATIONS, "cuda", shapes, dtypes)
    mixtures = mixture_sweep(MIXTURES, "cuda", "default")
    drop_ins = drop_in_sweep(DROP_INS, "cuda", GRIDS["cuda", "default"])
    for case in (*sampled, *plain, *mixtures, *drop_ins):
        if case.provider not in OURS:
            continue
        operation = ENTRIES[case.op]
        function = functions.get(case.provider, operation, "cuda", case.samples)
        function = functions.get_checked(case.provider, operation, function, case.samples)
        inputs = make_inputs(operation, case, "cuda", 0)
        upstream = make_upstream(operation, case, "cuda", 0)
        try:
            error = oracle.check(operation, case, function, inputs, upstream)
            report[case_id(case)] = {"error": error}
        except Exception as error:
            report[case_id(case)] = {"wrong": f"{type(error).__name__}: {error}"[:500]}
    return report


def sweep(options, step, left):
    """A part of the grid in a process of its own, for its share of the ``left`` seconds."""
    selected, share = SWEEPS[step]
    if step == max(options.steps, key=STEPS.index):
        share = 1.0  # nothing is to come
    if options.keyword:
        selected = f"({selected}) and ({options.keyword})"
    # Half a minute for collecting and for the last case.
    budget = max(share * left - 30, 1)
    command = [sys.executable, "-m", "pytest", "--benchmark", "--benchmark-quiet", "-k", selected]
    grid = options.grid if step == "sweep" else options.samples_grid
    command += [f"--grid={grid}", f"--results={options.out}", f"--budget={budget:.0f}"]
    if options.resume:
        command.append(f"--resume={options.resume}")
    return subprocess.run(command, check=False).returncode


def write(out, step, report):
    text = json.dumps({"machine_info": machine.describe("cuda"), step: report}, indent=1)
    (out / f"{step}.json").write_text(text + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_session",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--grid", default="full", help="of the sweep")
    parser.add_argument("--samples-grid", default="default", help="of K samples and drop-ins")
    parser.add_argument("-k", dest="keyword", help="of the sweeps, as pytest's")
    parser.add_argument("--resume", help="a results folder whose cases are left out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("needs a CUDA GPU")
    start = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    small = {"copy": step_copy, "noise": step_noise, "kernels": step_kernels, "check": step_check}
    worst = 0
    for step in STEPS:
        if step not in options.steps:
            continue
        spent = time.monotonic() - start
        print(f"{step} at {spent:.0f} s", flush=True)
        if step in SWEEPS:
            worst = max(worst, sweep(options, step, options.budget - spent))
        else:
            write(options.out, step, small[step]())
    raise SystemExit(worst)


if __name__ == "__main__":
    main()
