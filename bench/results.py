"""``results/<device>/``: raw JSON of every run, and all of them as one tidy table.

Runs are appended and never overwritten. Reading needs neither torch nor pytest.
"""

import json
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from .cases import Case, case_id
from .machine import slug

KEY = ["op", "provider", "batch", "latent", "dtype", "direction", "samples"]
CELL = ["op", "batch", "latent", "dtype", "direction", "samples"]
OURS = ("fused_elbo", "fused_elbo-chunked")
COLUMNS = [
    "run",
    "commit",
    *KEY,
    "clock",
    "status",
    "median_s",
    "q1_s",
    "q3_s",
    "rounds",
    "floor_bytes",
    "floor_s",
    "share_of_copy",
    "peak_bytes",
    "compile_s",
    "error",
    "reason",
]


def write(folder, output):
    """Write a run below ``folder`` and bring summary.csv up to date; returns the JSON's path."""
    now = datetime.now(timezone.utc)
    device = Path(folder) / slug(output["machine_info"])
    device.mkdir(parents=True, exist_ok=True)
    name = f"{now:%Y%m%dT%H%M%S}-{output['commit_info']['id'][:7]}"
    path = device / f"{name}.json"
    if path.exists():
        raise FileExistsError(f"{path.name} is there already: runs are appended, not overwritten")
    path.write_text(dump(output), encoding="utf-8", newline="\n")
    write_summary(device)
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


def runs(device):
    """(name, JSON) of every run of a device, oldest first."""
    for path in run_files(device):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def run_files(device):
    """The files named as runs are, 20261121T093000-abcdef0.json, oldest first."""
    digits = "[0-9]"
    return sorted(Path(device).glob(f"{8 * digits}T{6 * digits}-*.json"))


def devices(folder):
    """The device folders that have runs."""
    return sorted(path for path in Path(folder).glob("*/") if run_files(path))


def latest(folder):
    """The device folder with the newest run."""
    found = devices(folder)
    return max(found, key=lambda d: run_files(d)[-1].name) if found else None


def rows_of(name, run):
    """One row a case and clock; one without times for a provider that was wrong or failed."""
    common = {"run": name, "commit": run["commit_info"]["id"][:7]}
    for benchmark in run["benchmarks"]:
        info = benchmark["extra_info"]
        if "suite" in info:
            continue  # quality_results and samples_results read those
        clocks = {"host": info.get("host"), "graph": info.get("graph")}
        clocks[info["clock"]] = benchmark["stats"]
        for clock, stats in clocks.items():
            if stats:
                yield common | row(info, clock, stats, run["copy_bytes_per_s"])
    for info in run.get("not_timed", []):
        yield common | key_of(info) | {k: info[k] for k in ("status", "reason")}


def key_of(info):
    """What was measured. Runs from before there were operations on K samples say no K."""
    return {"samples": 1} | {k: info[k] for k in KEY if k in info}


def row(info, clock, stats, copy):
    return {
        **key_of(info),
        "clock": clock,
        "status": info["status"],
        "median_s": stats["median"],
        "q1_s": stats["q1"],
        "q3_s": stats["q3"],
        "rounds": stats["rounds"],
        "floor_bytes": info["floor_bytes"],
        "floor_s": info["floor_bytes"] / copy,
        "share_of_copy": info["floor_bytes"] / stats["median"] / copy,
        "peak_bytes": info["peak_bytes"],
        "compile_s": info["compile_seconds"],
        "error": info["error"],
    }


def load(device):
    """All runs of a device as one table."""
    rows = [row for name, run in runs(device) for row in rows_of(name, run)]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_summary(device):
    """summary.csv, from the JSON alone. The commit is part of the run's name."""
    table = load(device).drop(columns=["commit", "floor_s"])
    path = Path(device) / "summary.csv"
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def newest(table):
    """For every cell and clock the rows of one run: the newest that has the most providers.

    A speed-up is a ratio within one run, on one machine in one state; so a later run with
    ``-k fused_elbo`` does not replace what was compared.
    """
    right = table[table.status == "right"]
    group = [*CELL, "clock", "run"]
    size = right.groupby(group).provider.nunique().rename("size").reset_index()
    best = size.sort_values(["size", "run"]).groupby([*CELL, "clock"]).tail(1)
    return right.merge(best[group], on=group)


def speedups(table):
    """fused_elbo against eager and against the best baseline, for every cell and clock.

    Columns: time of fused_elbo, ``eager`` and ``best`` (ratios, above 1 where fused_elbo is
    faster), ``rival`` (the best baseline's name) and ``beyond_noise``: whether the quartiles
    of the two do not overlap; ``eager_beyond_noise`` the same of eager.
    """
    out = []
    for key, cell in newest(table).groupby([*CELL, "clock"], sort=True):
        by_name = cell.set_index("provider")
        rivals = by_name.drop(index=list(OURS), errors="ignore")
        if "fused_elbo" not in by_name.index or rivals.empty:
            continue
        fused, rival = by_name.loc["fused_elbo"], rivals.loc[rivals.median_s.idxmin()]
        eager = by_name.median_s.get("eager", float("nan"))
        known = "eager" in by_name.index
        out.append(
            dict(zip([*CELL, "clock"], key, strict=True))
            | {"median_s": fused.median_s, "eager": eager / fused.median_s}
            | {"best": rival.median_s / fused.median_s, "rival": rival.name}
            | {"beyond_noise": apart(fused, rival)}
            | {"eager_beyond_noise": known and apart(fused, by_name.loc["eager"])}
        )
    columns = [*CELL, "clock", "median_s", "eager", "best", "rival", "beyond_noise",
               "eager_beyond_noise"]  # fmt: skip
    return pd.DataFrame(out, columns=columns)


def apart(one, other):
    """Whether the quartile ranges of two rows do not overlap."""
    return bool(one.q1_s > other.q3_s or one.q3_s < other.q1_s)


def main_clock(table):
    """The clock of the charts: the device's where there is one."""
    return "device" if (table.clock == "device").any() else "host"


def measured(folder, commit):
    """The ids of all cases below ``folder`` that were measured at this commit."""
    found = set()
    for device in devices(folder):
        for _, run in runs(device):
            if run["commit_info"]["id"] == commit:
                infos = [b["extra_info"] for b in run["benchmarks"]] + run.get("not_timed", [])
                found |= {identity(info) for info in infos}
    return found


def identity(info):
    """The id of a case from its extra_info."""
    return info.get("id") or case_id(Case(**key_of(info)))
