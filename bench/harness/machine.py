"""The machine: its hardware and versions, without names of hosts, users or paths."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NVIDIA_FIELDS = (
    "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "persistence_mode",
    "ecc.mode.current", "mig.mode.current",
)  # fmt: skip
# These change while the GPU works. Older drivers have another word for the reasons.
LOAD_FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
REASONS = "clocks_event_reasons.active", "clocks_throttle_reasons.active"
HARMLESS = 0x1 | 0x2  # of the reasons: idle, and clocks that a user has set
# The part of what pytest-benchmark collects that says something about speed.
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
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        **asked(NVIDIA_FIELDS),
    }


def asked(fields):
    """The answers of nvidia-smi for the GPU in use; {} where it is absent or knows no such GPU.

    CUDA numbers the GPUs that a process may see, nvidia-smi all, and by another order: only the
    UUID names the same one. A part of a GPU (MIG) has a UUID that this question does not know.
    """
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    query = run(
        "nvidia-smi",
        f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader",
        f"--id=GPU-{properties.uuid}",
    )
    values = [value.strip() for value in query.split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) and query else {}


def load():
    """Clocks, temperature and power of the GPU just now, and the reasons that hold clocks back."""
    for reasons in REASONS:
        if found := asked((*LOAD_FIELDS, reasons)):
            return {"reasons" if key == reasons else key: found[key] for key in found}
    return {}


def held_back(found):
    """Whether ``load`` says that clocks are held back, by heat or power say."""
    try:
        return bool(int(found.get("reasons", "0"), 16) & ~HARMLESS)
    except ValueError:  # "[N/A]"
        return False


def why_no_gpu():
    """A sentence where there is an NVIDIA GPU that torch cannot use; None where all is well."""
    if DEVICE == "cuda" or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    driver = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if not driver and not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA at all"
    return (
        f"There is an NVIDIA GPU (driver {driver.splitlines()[0] if driver else 'unknown'}), and "
        f"torch {torch.__version__}, built for {built}, cannot use it: this is the CPU's run. "
        "Install a newer driver or a torch for this one; CUDA_VISIBLE_DEVICES= asks for the CPU."
    )


def installed(package):
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def numba_version():
    """The version of numba, whose kernels CPU tensors take; None where they take the reference."""
    return None if os.environ.get("TRITON_INTERPRET") == "1" else installed("numba")


def describe(device):
    """The fields that are added to pytest-benchmark's machine_info."""
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
