"""``results/<device>/``: the raw JSON of every run. Torch-free: the charts read it too.

Runs are appended and never overwritten.
"""

import json
import re
from datetime import datetime, timezone
from pathlib import Path

from .cases import Case

# Lists of a run, by what a line of a journal calls one of their rows.
LISTS = {"benchmark": "benchmarks", "not_timed": "not_timed"}
# Rows from before each said its suite; all that are not named here were of "operations".
BEFORE_SUITES = {
    "samples": "iwae_encoder iwae_step decoder",
    "drop_ins": "pytorch_examples_vae_loss pythae_vae_loss antixk_vanilla_vae_loss bolts_vae_loss "
    "scvi_kl_local gaussian_nll_loss pyro_step",
}


class Journal:
    """A run that is not done: ``NAME.jsonl``, to which each case is added as soon as it is done.

    Its first line is what a run says beside its cases. A process that is killed leaves it behind,
    and ``read`` takes it like any other run.
    """

    def __init__(self, folder, output):
        now = datetime.now(timezone.utc)
        device = Path(folder) / slug(output["machine_info"])
        device.mkdir(parents=True, exist_ok=True)
        name = f"{now:%Y%m%dT%H%M%S}-{output['commit_info']['id'][:7]}"
        self.path, self.final = device / f"{name}.jsonl", device / f"{name}.json"
        if self.path.exists() or self.final.exists():
            raise FileExistsError(f"{name} is there already: runs are appended, not overwritten")
        self.add(**{k: v for k, v in output.items() if k not in LISTS.values()})

    def add(self, **line):
        """``started``, ``benchmark`` and ``not_timed`` are of a case, other keys of the run."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(shorten(line)) + "\n")

    def finish(self, output):
        """Put the run's JSON in the journal's place; returns its path, or None of an empty run."""
        if any(output[key] for key in LISTS.values()):
            self.final.write_text(dump(output), encoding="utf-8", newline="\n")
        self.path.unlink()
        return self.final if self.final.exists() else None


def from_journal(lines):
    """The run that a journal tells of. A last line that was cut off is left out."""
    output = {"benchmarks": [], "not_timed": []}
    started = None
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise
        started = found.pop("started", started)
        for key, rows in LISTS.items():
            if key in found:
                output[rows].append(found.pop(key))
                started = None
        output |= found
    return output | {"ended": {"why": "killed", "case": started}}


def dump(output):
    """JSON with one line a benchmark, numbers to six digits."""
    output = {**output, "benchmarks": [compact(b) for b in output["benchmarks"]]}
    lists = {key: output.pop(key) for key in ("benchmarks", "not_timed")}
    text = json.dumps(shorten(output), indent=1)
    for key, rows in lists.items():
        lines = ",\n".join("  " + json.dumps(shorten(row), separators=(",", ":")) for row in rows)
        text = f'{text[:-2]},\n "{key}": [\n{lines}\n ]\n}}'
    return text + "\n"


def reason(error):
    """An exception as rows show it: its type, and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


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
        yield path.stem, load(path)


def load(path):
    """A run's JSON, or what there is of one that was killed. Ends where the file is damaged."""
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text) if path.suffix == ".json" else from_journal(text.splitlines())
    except ValueError as error:
        raise SystemExit(f"{path} is damaged ({error}): restore it, or move it away") from None


def files(device):
    """The files named as runs are, 20261121T093000-abcdef0.json, oldest first.

    A journal counts where the run's JSON is not there.
    """
    digits = "[0-9]"
    found = {p.stem: p for p in Path(device).glob(f"{8 * digits}T{6 * digits}-*.jsonl")}
    found |= {p.stem: p for p in Path(device).glob(f"{8 * digits}T{6 * digits}-*.json")}
    return [found[name] for name in sorted(found)]


def devices(folder):
    """The device folders that have runs."""
    return sorted(path for path in Path(folder).glob("*/") if files(path))


def latest(folder):
    """The device folder with the newest run."""
    found = devices(folder)
    return max(found, key=lambda d: files(d)[-1].stem) if found else None


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
    """The case of a row. Runs from before operations on K samples do not state K."""
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
