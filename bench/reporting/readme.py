"""``results/<device>/README.md``: the words beside the charts, from the JSON alone."""

from . import on_cpu
from .formats import DASH, WAITS
from .speedups import losses, not_timed, speedup_table
from .tables import Table, text

CLOCKS = {
    "device": "**device**: CUDA events around one call, cold L2 (256 MB are written and another "
    "256 MB read before every round), queued ahead behind a spin kernel so that no host time is in "
    f"it, unless the call itself waits for the device (marked {WAITS}) or has over a thousand "
    "launches. The charts show this clock unless they say otherwise.",
    "graph": "**graph**: replay of a CUDA graph that holds one call on each of up to 16 input "
    "sets, divided by their number. Sets of less than 10 MB stay in the L2.",
    "host": "**host**: wall-clock of the public call, from an idle device to a finished result.",
}
CPU_CLOCK = (
    "**host**: wall-clock (`perf_counter`) of one call, the only clock on a CPU. Inputs "
    "rotate over up to 4 sets. Where the kernel took the processor away in a round, the "
    "next waits until no other process wants to run."
)
RUNS = ["run", "commit", "command", "measurements", "copy, read + write", "load before", "torch",
        "triton", "numba"]  # fmt: skip


def write(device, charts, suites):
    """``charts`` are paths, ``suites`` as in bench.suites; ``notes.md`` beside it is added."""
    parts = [
        f"# {device.info['device_name']}",
        "Written by `python -m bench.plot` from the JSON in this folder; redraw with "
        f"`python -m bench.plot {device.folder.name}`.",
    ]
    if device.on_cpu:
        parts += on_cpu.notes(device.info, device.infos(device.right))
    parts += [
        "## Result",
        f"Speed-up of `fused_elbo` ({device.clock} clock), geometric mean over all batch sizes, "
        "dimensions and K measured; the best baseline is the fastest of all others in each cell, "
        "and not one provider. A cell counts as faster or slower where the quartile ranges of the "
        "two do not overlap.",
        speedup_table(device.speedups, [suite.name for suite in suites]),
        "## Where fused_elbo loses",
        *losses(device.all_speedups),
        *not_timed(device.table),
    ]
    for suite in suites:
        parts += suite.sections(device)
    notes = device.folder / "notes.md"
    if notes.exists():
        parts += ["## Notes", notes.read_text(encoding="utf-8").strip()]
    parts += [
        "## Hardware and versions",
        Table(["what", "value"], hardware_rows(device.info) + load_rows(device.newest_run)),
        "## Runs",
        runs_table(device.runs),
        "`pytest --benchmark --results results` writes such a run; `make bench` also redraws "
        "what is here. The load is the system's one-minute average before the run: what others "
        "were doing. A chart shows each cell from one run: ratios are never taken across runs.",
        "## Clocks and columns",
        clocks(device),
        "## Charts",
        *(f"![{chart.stem}](plots/{chart.name})" for chart in charts),
    ]
    path = device.folder / "README.md"
    path.write_text(text(parts) + "\n", encoding="utf-8", newline="\n")


def hardware_rows(info):
    return [
        ["device", info["device_name"]],
        *([key.replace("_", " "), value] for key, value in (info["gpu"] or {}).items()),
        ["CPU", f"{info['cpu']['brand_raw']}, {info['cpu']['count']} logical"],
        ["threads of torch", info["threads"]],
        ["torch", info["torch"]],
        ["triton", info["triton"]],
        *([["numba", info["numba"]]] if "numba" in info else []),
        ["Python", info["python_version"]],
        ["system", f"{info['system']} {info['machine']}"],
    ]


def load_rows(run):
    """A GPU's clocks at work, at the beginning and the end of a run."""
    return [
        [f"at work, {when}", ", ".join(f"{key} {value}" for key, value in found.items())]
        for when, found in zip(("first", "last"), run.get("load") or (), strict=False)
        if found
    ]


def runs_table(runs):
    table = Table(RUNS, [run_row(name, run) for name, run in runs])
    known = any("numba" in run["machine_info"] for _, run in runs)
    return table if known else table.without("numba")


def run_row(name, run):
    commit = run["commit_info"]["id"][:7] + (" + changes" if run["commit_info"]["dirty"] else "")
    copy, load = run["copy_bytes_per_s"], run.get("load_average_before")
    return [
        f"[{name}]({name}.json)",
        commit,
        f"`{run['command']}`",
        len(run["benchmarks"]),
        f"{copy / 1e9:.4g} GB/s" if copy else DASH,
        DASH if load is None else f"{load:.2f}",
        run["machine_info"]["torch"],
        run["machine_info"]["triton"],
        run["machine_info"].get("numba") or DASH,
    ]


def clocks(device):
    lines = [f"- {words}" for clock, words in CLOCKS.items() if (device.table.clock == clock).any()]
    compiling = "anew for every shape"
    memory = "`torch.cuda.max_memory_allocated` less what was allocated before the call"
    if device.on_cpu:
        lines = [f"- {CPU_CLOCK}"]
        compiling = "with symbolic sizes, once an operation and direction"
        memory = (
            "from torch's profiler, which sees every allocation of torch's CPU allocator; only "
            "for forward+backward, from 2^18 elements on, or with K samples or components"
            + on_cpu.memory(device.info)
        )
    rounds = device.table.rounds.dropna()
    if rounds.empty:
        return "\n".join(lines)
    lines += [
        f"- Every figure is a median with quartiles, of {rounds.min():.0f} to "
        f"{rounds.max():.0f} rounds; warm-up and compilation come before.",
        "- Every provider is checked against float64 on the inputs that are timed, gradients "
        "included, before it is timed; one that is wrong gets no time.",
        f"- `torch.compile` compiles {compiling}, with `fullgraph=True`; `compile_s` is the first "
        "call less a later one, and in no other figure.",
        "- Upstream gradients are random; a scalar loss is differentiated as it is.",
        "- `share_of_copy` is the bytes that an operation must move (each input read once, each "
        "output written once), divided by the time and by the speed of a large copy in the same "
        "run. Data that fits a cache can exceed 1.",
        f"- Peak memory is {memory}.",
    ]
    return "\n".join(lines)
