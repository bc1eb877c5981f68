"""``results/<device>/``: the raw JSON of every run. Torch-free: the charts read it too.

Runs are appended and never overwritten.
"""

import json
import re
from datetime import datetime, timezone
from pathlib import Path

from .cases import Case

# Rows from before each said its suite; all that are not named here were of "operations".
BEFORE_SUITES = {
    "samples": "iwae_encoder iwae_step decoder",
    "drop_ins": "pytorch_examples_vae_loss pythae_vae_loss antixk_vanilla_vae_loss bolts_vae_loss "
    "scvi_kl_local gaussian_nll_loss pyro_step",
}


def write(folder, output):
    """Write a run below ``folder``; returns the JSON's path."""
    now = datetime.now(timezone.utc)
    device = Path(folder) / slug(output["machine_info"])
    device.mkdir(parents=True, exist_ok=True)
    name = f"{now:%Y%m%dT%H%M%S}-{output['commit_info']['id'][:7]}"
    path = device / f"{name}.json"
    if path.exists():
        raise FileExistsError(f"{path.name} is there already: runs are appended, not overwritten")
    path.write_text(dump(output), encoding="utf-8", newline="\n")
    return path


def dump(output):
    """JSON with one line a benchmark, numbers to six digits."""
    output = {**output, "benchmarks": [compact(b) for b in output["benchmarks"]]}
    lists = {key: output.pop(key) for key in ("benchmarks", "not_timed")}
    text = json.dumps(shorten(output), indent=1)
    for key, rows in lists.items():
        lines = ",\n".join("  " + json.dumps(shorten(row), separators=(",", ":")) for row in rows)
        text = f'{text[:-2]},\n "{key}": [\n{lines}\n ]\n}}'
    return text + "\n"


def compact(benchmark):
    """Without pytest-benchmark's options, alike in all rows, and parameters, in extra_info."""
    return {k: v for k, v in benchmark.items() if k not in ("options", "params", "param")}


def shorten(value):
    """Floats to six digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: shorten(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [shorten(v) for v in value]
    return value


def read(device):
    """(name, JSON) of every run of a device, oldest first."""
    for path in files(device):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def files(device):
    """The files named as runs are, 20261121T093000-abcdef0.json, oldest first."""
    digits = "[0-9]"
    return sorted(Path(device).glob(f"{8 * digits}T{6 * digits}-*.json"))


def devices(folder):
    """The device folders that have runs."""
    return sorted(path for path in Path(folder).glob("*/") if files(path))


def latest(folder):
    """The device folder with the newest run."""
    found = devices(folder)
    return max(found, key=lambda d: files(d)[-1].name) if found else None


def slug(machine_info):
    """The name of the device's folder.

    >>> slug({"device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"})
    'nvidia-h100-80gb-hbm3'
    """
    name = machine_info["device_name"]
    if machine_info["device"] == "cpu":
        name = f"cpu-{name}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def case_of(info):
    """The case of a row. Runs from before there were operations on K samples say no K."""
    suites = [suite for suite, ops in BEFORE_SUITES.items() if info["op"] in ops.split()]
    known = {"samples": 1, "suite": (*suites, "operations")[0]} | info
    return Case(**{field: known[field] for field in Case._fields})


def measured(folder, commit):
    """The ids of all cases below ``folder`` that were measured at this commit."""
    found = set()
    for device in devices(folder):
        for _, run in read(device):
            if run["commit_info"]["id"] == commit:
                infos = [b["extra_info"] for b in run["benchmarks"]] + run.get("not_timed", [])
                found |= {info.get("id") for info in infos}
    return found
