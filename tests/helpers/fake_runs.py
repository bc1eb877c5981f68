"""Runs of a machine that does not exist, for the tests of reports and charts."""

from bench import results


def run(day, benchmarks, device="cpu", gpu=None):
    """What ``pytest --benchmark`` writes, around these benchmarks."""
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
    (device / name).write_text(results.dump(output))
    return device
