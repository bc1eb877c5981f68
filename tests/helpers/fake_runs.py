"""Runs of a machine that does not exist, for the tests of reports and charts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.harness import runs
from bench.harness.cases import DIRECTIONS, Case

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """A stand-in for the fixture of a benchmark's test, for cases that are left out."""

    identity = "made-up"

    def __init__(self):
        self.not_timed = []

    def leave_out(self, status, reason, **info):
        self.not_timed.append({**info, "status": status, "reason": reason})


def pytest(*arguments, path=""):
    """pytest in a process of its own, from the repository's root."""
    env = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def run(day, benchmarks, device="cpu", gpu=None):
    """The JSON that ``pytest --benchmark`` writes around these benchmarks."""
    return {
        "machine_info": {
            "device": device,
            "device_name": "Made Up",
            "gpu": gpu,
            "cpu": {"brand_raw": "none", "count": 1},
            "threads": 1,
            "torch": "0",
            "triton": "0",
            "python_version": "0",
            "system": "none",
            "machine": "none",
        },
        "commit_info": {"id": f"abc{day:04}", "dirty": False},
        "grid": "smoke",
        "command": "pytest --benchmark",
        "copy_bytes_per_s": 1e9,
        "not_timed": [],
        "benchmarks": benchmarks,
    }


def write(folder, day, output):
    """Into the device's folder among the results in ``folder``; returns it."""
    device = folder / "made-up"
    device.mkdir(parents=True, exist_ok=True)
    name = f"202601{day:02}T000000-{output['commit_info']['id']}.json"
    (device / name).write_text(runs.dump(output))
    return device


def row(case, stats, **more):
    """A benchmark of a case that was right."""
    info = {**case._asdict(), "status": "right", "error": 1e-7, "compile_seconds": 0.0}
    return {"extra_info": info | more, "stats": stats}


def times(seconds, spread):
    low, high = (1 - spread) * seconds, (1 + spread) * seconds
    return {"median": seconds, "q1": low, "q3": high, "rounds": 9}


def of_operations(day, seconds):
    """On a GPU, two operations by every clock; ``seconds`` by provider."""
    benchmarks = []
    for op in ("gaussian_kl", "elbo_step"):
        for batch, latent in ((64, 8), (64, 32), (512, 8), (512, 32)):
            for direction in DIRECTIONS:
                for provider, base in seconds.items():
                    stats = times(base * (1 + batch / 64 + latent / 8), 0.02)
                    case = Case(op, provider, batch, latent, "float32", direction, 1, "operations")
                    more = {
                        "clock": "device",
                        "host": {**stats, "median": 2 * stats["median"]},
                        "graph": stats,
                        "peak_bytes": 10 * batch * latent,
                        "floor_bytes": 12 * batch * latent,
                    }
                    benchmarks.append(row(case, stats, **more))
    return run(day, benchmarks, "cuda", {"name": "Made Up"})


def redraw(folder, seed="1"):
    """Charts and tables of a folder, in a process without torch; what the terminal showed."""
    program = (
        "import sys; sys.modules['torch'] = None; from bench import plot, table\n"
        "for main in plot.main, table.main: main(['--results', sys.argv[1]])"
    )
    command = [sys.executable, "-c", program, str(folder)]
    env = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def redraw_twice(folder, other):
    """Charts and tables of a folder and of its copy.

    Returns what the terminal showed, and the files, which are the same byte by byte.
    """
    shutil.copytree(folder, other)
    shown = [redraw(folder, "1"), redraw(other, "2")]
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    for name in files:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    return shown, files
