"""How fast normals come: ``python -m bench.gpu_noise OUT`` writes OUT/noise.json.

Loaded, by torch.randn, by tl.randn, by tl.randn4x, and by the kernels' own function.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import triton
import triton.language as tl

from fused_elbo.kernels.triton.launch import PTX
from fused_elbo.kernels.triton.noise import normal_tile

from .harness import clock, machine

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
    """Median device time of one call, from a cold L2."""
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


def measured():
    """Seconds for 16.8M normals, and normals per second. Each writes 4 bytes per normal."""
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


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_noise", description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args(arguments).out
    text = json.dumps({"machine_info": machine.describe("cuda"), "noise": measured()}, indent=1)
    (out / "noise.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
