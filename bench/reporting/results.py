"""All runs of a device as one tidy table, and what is compared in it. No torch."""

from functools import cached_property
from pathlib import Path

import pandas as pd

from ..harness import runs
from ..harness.cases import DTYPES
from ..harness.providers import OURS, PROVIDERS
from . import on_cpu
from .formats import WAITS

CELL = ["op", "batch", "latent", "dtype", "direction", "samples"]
KEY = ["op", "provider", *CELL[1:]]
TIMES = ["median_s", "q1_s", "q3_s", "rounds"]
OWN = [*CELL, "clock", "suite", "order", "counts_samples", "median_s", "peak_bytes"]
SPEEDUPS = [*OWN, "eager", "best", "rival", "beyond_noise", "eager_beyond_noise", "eager_bytes",
            "least_bytes"]  # fmt: skip
COLUMNS = [
    "run", "commit", *KEY, "clock", "status", *TIMES, "floor_bytes", "floor_s", "share_of_copy",
    "peak_bytes", "compile_s", "error", "reason",
]  # fmt: skip


class Device:
    """A device's folder: its runs, read once, and the tables that are made of them.

    ``table`` has a row per case and clock, ``right`` those that charts show, ``speedups`` is
    fused_elbo against the others. Rows of suites that time no operations are in ``runs`` only.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.runs = list(runs.read(folder))
        self.newest_name, self.newest_run = self.runs[-1]
        self.info = self.newest_run["machine_info"]
        self.on_cpu = self.info["device"] == "cpu"

    @cached_property
    def table(self):
        rows = [row for name, run in self.runs for row in rows_of(name, run)]
        table = pd.DataFrame(rows, columns=[*COLUMNS, "suite", "host_waits"])
        # An operation keeps its place as runs are added: where it was measured first.
        order = table.op.map({op: i for i, op in enumerate(table.op.unique())})
        # A suite that has more than one K somewhere states K everywhere.
        counts_samples = table.groupby("suite").samples.transform("max") > 1
        return table.assign(order=order, counts_samples=counts_samples)

    @cached_property
    def right(self):
        return newest(self.table)

    @cached_property
    def all_speedups(self):
        return speedups(self.right)

    @cached_property
    def speedups(self):
        """The speed-ups by the clock of the charts."""
        return self.all_speedups[self.all_speedups.clock == self.clock]

    @cached_property
    def clock(self):
        """The clock of the charts: the device's where there is one."""
        return "device" if (self.right.clock == "device").any() else "host"

    @property
    def subject(self):
        """One line on what the charts show: device, versions, date, and the CPU's caveat."""
        info, name = self.info, self.newest_name
        kernels = "numba" if self.on_cpu and on_cpu.has_kernels(info) else "triton"
        parts = [info["device_name"], f"torch {info['torch']}", f"{kernels} {info[kernels]}"]
        parts.append(f"{name[:4]}-{name[4:6]}-{name[6:8]}")
        return " · ".join([*parts, on_cpu.under_titles(info)] if self.on_cpu else parts)

    def infos(self, table):
        """{name: machine_info} of the runs that a table has rows of, oldest first."""
        names = set(table.run)
        return {name: run["machine_info"] for name, run in self.runs if name in names}

    def of_suite(self, suite):
        """(name of the run, row) of each benchmark of a suite that says its own name."""
        for name, run in self.runs:
            for benchmark in run["benchmarks"]:
                if benchmark["extra_info"].get("suite") == suite:
                    yield name, benchmark


def rows_of(name, run):
    """One row per case and clock; one without times for a provider that was wrong or failed."""
    common = {"run": name, "commit": run["commit_info"]["id"][:7]}
    for benchmark in run["benchmarks"]:
        info = benchmark["extra_info"]
        if "op" not in info:
            continue
        of_case = {
            **runs.case_of(info)._asdict(),
            **{column: info[column] for column in ("status", "floor_bytes", "peak_bytes", "error")},
            "floor_s": info["floor_bytes"] / run["copy_bytes_per_s"],
            "compile_s": info["compile_seconds"],
            "host_waits": bool(info.get("host_waits")),
        }
        clocks = {"host": info.get("host"), "graph": info.get("graph")}
        clocks[info["clock"]] = benchmark["stats"]
        for clock, stats in clocks.items():
            if stats:
                share = info["floor_bytes"] / stats["median"] / run["copy_bytes_per_s"]
                yield common | of_case | times(stats) | {"clock": clock, "share_of_copy": share}
    for info in run.get("not_timed", []):
        if "op" not in info:
            continue
        of_case = runs.case_of(info)._asdict() | {k: info[k] for k in ("status", "reason")}
        yield common | of_case | {"host_waits": False}


def times(stats):
    return dict(zip(TIMES, (stats[k] for k in ("median", "q1", "q3", "rounds")), strict=True))


def present(table, suites=None):
    """The operations of a table, suite by suite, each as they were measured."""
    if suites is not None:
        return [op for suite in suites for op in present(table[table.suite == suite])]
    return table.sort_values("order").op.unique().tolist()


def dtypes(table):
    """The dtypes of a table, in the order of the legend."""
    return [name for name in DTYPES if (table.dtype == name).any()]


def providers(table):
    """The providers of a table, in the order of the legend."""
    return [name for name in PROVIDERS if (table.provider == name).any()]


def waiting(table):
    """The providers whose calls make the host wait for the device, in some cell."""
    return set(table[table.host_waits & (table.clock == "device")].provider)


def summary(device):
    """summary.csv, from the JSON alone. The commit is part of the run's name."""
    return device.table[[c for c in COLUMNS if c not in ("commit", "floor_s")]]


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


def newest_run(table):
    """The rows of one run: the newest of those with the most rows."""
    if table.empty:
        return table
    size = table.groupby("run").size()
    return table[table.run == size[size == size.max()].index.max()]


def speedups(right):
    """fused_elbo against eager and against the best baseline, a row per cell and clock.

    ``eager`` and ``best`` are ratios of times, above 1 where fused_elbo is faster; ``rival`` is
    the best baseline's name; ``beyond_noise`` and ``eager_beyond_noise`` say whether quartiles do
    not overlap. Beside fused_elbo's own time and peak memory: eager's memory, and the least.
    """
    cells = (cell.set_index("provider") for _, cell in right.groupby([*CELL, "clock"]))
    return pd.DataFrame([row for row in map(compared, cells) if row], columns=SPEEDUPS)


def compared(cell):
    rivals = cell.drop(index=list(OURS), errors="ignore")
    if "fused_elbo" not in cell.index or rivals.empty:
        return None
    fused, rival = cell.loc["fused_elbo"], rivals.loc[rivals.median_s.idxmin()]
    eager = cell.reindex(["eager"]).iloc[0]  # NaN where there is none
    return {
        **fused[OWN].to_dict(),
        "eager": eager.median_s / fused.median_s,
        "best": rival.median_s / fused.median_s,
        "rival": rival.name + (WAITS if rival.host_waits else ""),
        "beyond_noise": apart(fused, rival),
        "eager_beyond_noise": apart(fused, eager),
        "eager_bytes": eager.peak_bytes,
        "least_bytes": rivals.peak_bytes.min(),
    }


def apart(one, other):
    """Whether the quartile ranges of two rows do not overlap."""
    return bool(one.q1_s > other.q3_s or one.q3_s < other.q1_s)
