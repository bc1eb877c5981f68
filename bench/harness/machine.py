"""On what it was measured: hardware and versions, without names of hosts, users or paths."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NVIDIA_FIELDS = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "pstate")
# Of what pytest-benchmark collects, the part that says something about speed.
KEPT = ("machine", "system", "python_implementation", "python_version")


def run(*command):
    """The output of a command, or "" where it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit():
    """(id, dirty): from git, or from FUSED_ELBO_COMMIT where the checkout has no history."""
    given = os.environ.get("FUSED_ELBO_COMMIT")
    if given:
        return given, False
    # Charts and tables are written below results/ and into README.md and docs/.
    paths = (".", ":!results", ":!README.md", ":!docs")
    sources = ("status", "--porcelain", "--untracked-files=no", "--", *paths)
    return run("git", "rev-parse", "HEAD") or "unknown", bool(run("git", *sources))


def cpu_model():
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return run("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or "unknown"


def gpu():
    """Name, memory, driver and clocks of the GPU in use."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = run(
        "nvidia-smi",
        f"--query-gpu={','.join(NVIDIA_FIELDS)}",
        "--format=csv,noheader",
        f"--id={torch.cuda.current_device()}",
    )
    values = [value.strip() for value in query.split(",")]
    fields = dict(zip(NVIDIA_FIELDS, values, strict=True)) if query.count(",") == 4 else {}
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        **fields,
    }


def installed(package):
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def numba_version():
    """Of the kernels that CPU tensors take; None where they take the reference."""
    return None if os.environ.get("TRITON_INTERPRET") == "1" else installed("numba")


def describe(device):
    """What is added to pytest-benchmark's machine_info."""
    return {
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "gpu": gpu() if device == "cuda" else None,
        "cpu": {"brand_raw": cpu_model(), "count": os.cpu_count()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": installed("triton"),
        "numba": numba_version(),
    }


def scrub(machine_info):
    """Drop what pytest-benchmark collects and nobody else needs, the host's name first."""
    for key in list(machine_info):
        if key not in KEPT:
            del machine_info[key]
