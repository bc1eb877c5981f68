"""The words beside the charts: ``results/<device>/README.md`` and the table in README.md."""

import math
from pathlib import Path

from . import results
from .cases import ALL, DIRECTIONS, DROP_INS, OPERATIONS, SAMPLED

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
MOST_LOSSES = 20
TIMES, DASH = "\u00d7", "\u2013"

CPU_NOTE = (
    "No GPU here, so **no Triton kernel was timed**: on a CPU `fused_elbo` is its PyTorch "
    "reference, and Triton's interpreter is for tests only. These figures say what a CPU user "
    "gets by choosing between the providers; they say nothing about the kernels."
)
CLOCKS = {
    "device": "**device**: CUDA events around one call, cold L2 (256 MB are written before every "
    "round), queued ahead behind a spin kernel so that no host time is in it, as far as the call "
    "does not itself wait for the device. The charts show this clock unless they say otherwise.",
    "graph": "**graph**: replay of a CUDA graph that holds one call on each of up to 16 input "
    "sets, divided by their number.",
    "host": "**host**: wall-clock of the public call, from an idle device to a finished result.",
}


def geometric_mean(values):
    values = [v for v in values if v > 0]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def newest_run(device):
    return list(results.runs(device))[-1]


def subject(device):
    """One line on what the charts show: device, versions, date, and the CPU's caveat."""
    name, run = newest_run(device)
    info = run["machine_info"]
    parts = [
        info["device_name"],
        f"torch {info['torch']}",
        f"triton {info['triton']}",
        f"{name[:4]}-{name[4:6]}-{name[6:8]}",
    ]
    if info["device"] == "cpu":
        parts.append("here fused_elbo is its PyTorch reference: the kernels need a GPU")
    return " · ".join(parts)


def table(headers, rows):
    """A Markdown table."""
    rule = ["---"] * len(headers)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [headers, rule, *rows])


def ratio(value):
    """1.35 with a multiplication sign, or a dash for nan."""
    return DASH if math.isnan(value) else f"{factor(value)}{TIMES}"


def factor(value):
    """A ratio with two or three digits.

    >>> factor(0.0123), factor(0.62), factor(1.352), factor(12.34)
    ('0.012', '0.62', '1.35', '12.3')
    """
    if value < 0.095:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 9.95 else f"{value:.1f}"


def seconds(value):
    """A time with three digits and a unit.

    >>> seconds(0.00012345), seconds(1.5)
    ('123 µs', '1.5 s')
    """
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s"


def size(bytes_):
    """
    >>> size(2**28), size(1.5 * 2**30), size(float("nan")) == DASH
    ('256 MiB', '1.5 GiB', True)
    """
    if bytes_ is None or math.isnan(bytes_):
        return DASH
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if bytes_ >= scale:
            shown = bytes_ / scale
            return f"{shown:.3g} {unit}" if shown < 999 else f"{shown:.0f} {unit}"
    return f"{bytes_:.0f} B"


def verdicts(cells):
    """How many cells are faster, within noise, and slower than the best baseline."""
    apart = cells.beyond_noise
    faster, slower = (apart & (cells.best > 1)).sum(), (apart & (cells.best < 1)).sum()
    return f"{faster} / {len(cells) - faster - slower} / {slower}"


def operation_rows(speedups):
    """A row an operation, direction and dtype: speed-ups over eager and the best baseline."""
    rows = []
    for op in ALL:
        for direction in DIRECTIONS:
            for dtype in ("float32", "bfloat16"):
                mask = (speedups.op == op) & (speedups.direction == direction)
                cells = speedups[mask & (speedups.dtype == dtype)]
                if cells.empty:
                    continue
                rows.append(
                    [
                        f"`{op}`",
                        direction,
                        dtype,
                        ratio(geometric_mean(cells.eager)),
                        ratio(geometric_mean(cells.best)),
                        f"{ratio(cells.best.min())} … {ratio(cells.best.max())}",
                        verdicts(cells),
                    ]
                )
    return rows


def shape(cell):
    """B x D, with K in front where there are samples."""
    samples = f"K = {cell.samples}, " if cell.op in SAMPLED else ""
    return f"{samples}{cell.batch} x {cell.latent}"


def losses(speedups):
    """The cells where fused_elbo is slower than the best baseline by more than noise."""
    lost = speedups[(speedups.best < 1) & speedups.beyond_noise].sort_values("best")
    return lost, [
        [
            f"`{cell.op}`",
            cell.direction,
            cell.dtype,
            shape(cell),
            cell.clock,
            ratio(cell.best),
            cell.rival,
            seconds(cell.median_s),
        ]
        for cell in lost.head(MOST_LOSSES).itertuples()
    ]


def write_device_readme(device, charts):
    """README.md of a device's folder, from the JSON; ``notes.md`` beside it is kept and added."""
    from . import drop_ins_report, quality_report, samples_report  # which use this module's tables

    device = Path(device)
    data = results.load(device)
    speedups = results.speedups(data)
    right = results.newest(data)
    clock = results.main_clock(right)
    _, run = newest_run(device)
    info = run["machine_info"]
    parts = [
        f"# {info['device_name']}",
        "Written by `python -m bench.plot` from the JSON in this folder; redraw with "
        f"`python -m bench.plot {device.name}`.",
    ]
    if info["device"] == "cpu":
        parts.append(CPU_NOTE)
    parts += [
        "## Result",
        f"Speed-up of `fused_elbo` ({clock} clock), geometric mean over all batch sizes, "
        "dimensions and K measured; the best baseline is the fastest of all others in each cell, "
        "and not one provider. A cell counts as faster or slower where the quartile ranges of the "
        "two do not overlap.",
        table(
            ["operation", "direction", "dtype", "over eager", "over best baseline", "range",
             "faster / within noise / slower"],
            operation_rows(speedups[speedups.clock == clock]),
        ),
        "## Where fused_elbo loses",
        losing_text(speedups),
        *not_timed_text(data),
    ]  # fmt: skip
    parts += samples_report.sections(device, right, clock, info["device"])
    parts += drop_ins_report.sections(right, speedups, clock)
    parts += quality_report.sections(device)
    notes = device / "notes.md"
    if notes.exists():
        parts += ["## Notes", notes.read_text(encoding="utf-8").strip()]
    parts += [
        "## Hardware and versions",
        table(["what", "value"], hardware_rows(info)),
        "## Runs",
        table(
            [
                "run",
                "commit",
                "command",
                "measurements",
                "copy, read + write",
                "load before",
                "torch",
                "triton",
            ],
            [run_row(name, run) for name, run in results.runs(device)],
        ),
        "`pytest --benchmark --results results` writes such a run; `make bench` also redraws "
        "what is here. The load is the system's one-minute average before the run: what others "
        "were doing. A chart shows each cell from one run: ratios are never taken across runs.",
        "## Clocks and columns",
        clocks_text(data, info["device"]),
        "## Charts",
        *(f"![{chart.stem}](plots/{chart.name})" for chart in charts),
    ]
    (device / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def losing_text(speedups):
    lost, rows = losses(speedups)
    total = len(speedups)
    if not rows:
        return f"In none of {total} cells (all clocks) by more than noise."
    headers = ["operation", "direction", "dtype", "B x D", "clock", "speed-up", "to", "fused_elbo"]
    shown = f"; the {len(rows)} worst" if len(lost) > len(rows) else ""
    text = f"In {len(lost)} of {total} cells (all clocks) by more than noise{shown}:"
    return f"{text}\n\n{table(headers, rows)}"


def not_timed_text(data):
    """What was wrong or did not run, once for each reason."""
    bad = data[data.status != "right"].drop_duplicates(["op", "provider", "dtype", "reason"])
    if bad.empty:
        return []
    rows = [
        [f"`{r.op}`", r.provider, shape(r), r.dtype, r.direction, r.status,
         str(r.reason).replace("|", "\\|")]
        for r in bad.itertuples()
    ]  # fmt: skip
    headers = ["operation", "provider", "B x D", "dtype", "direction", "status", "reason"]
    return ["## Not timed", table(headers, rows)]


def hardware_rows(info):
    rows = [["device", info["device_name"]]]
    rows += [[key.replace("_", " "), value] for key, value in (info["gpu"] or {}).items()]
    rows += [
        ["CPU", f"{info['cpu']['brand_raw']}, {info['cpu']['count']} logical"],
        ["threads of torch", info["threads"]],
        ["torch", info["torch"]],
        ["triton", info["triton"]],
        ["Python", info["python_version"]],
        ["system", f"{info['system']} {info['machine']}"],
    ]
    return rows


def run_row(name, run):
    commit = run["commit_info"]["id"][:7] + (" + changes" if run["commit_info"]["dirty"] else "")
    copy = run["copy_bytes_per_s"]
    speed = f"{copy / 1e9:.4g} GB/s" if copy else DASH
    info, load = run["machine_info"], run.get("load_average_before")
    return [
        f"[{name}]({name}.json)",
        commit,
        f"`{run['command']}`",
        len(run["benchmarks"]),
        speed,
        DASH if load is None else f"{load:.2f}",
        info["torch"],
        info["triton"],
    ]


def clocks_text(data, device):
    lines = [f"- {text}" for clock, text in CLOCKS.items() if (data.clock == clock).any()]
    if device == "cpu":
        lines = [
            "- **host**: wall-clock (`perf_counter`) of one call, the only clock on a CPU. Inputs "
            "rotate over up to 4 sets. Where the kernel took the processor away in a round, the "
            "next waits until no other process wants to run."
        ]
        compiling = "with symbolic sizes, once an operation and direction"
        memory = (
            "from torch's profiler, which sees every allocation of torch's CPU allocator; only "
            "for forward+backward, from 2^18 elements on, or with K samples"
        )
    else:
        compiling = "anew for every shape"
        memory = "`torch.cuda.max_memory_allocated` less what was allocated before the call"
    rounds = data.rounds.dropna()
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


def update_project_readme(folder):
    """Put the short tables between their markers in README.md; without markers, leave it alone."""
    from . import quality_report

    folder = Path(folder).resolve()
    if folder.parent != ROOT:
        return
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = filled(text, BEGIN, END, project_table(folder))
    new = filled(
        new, quality_report.BEGIN, quality_report.END, quality_report.project_section(folder)
    )
    if new != text:
        readme.write_text(new, encoding="utf-8", newline="\n")


def filled(text, begin, end, content):
    """The text with ``content`` between two markers, or as it is where they are absent."""
    if begin not in text or end not in text:
        return text
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def project_table(folder):
    """Forward+backward of every operation and drop-in, a column a device; GPUs first."""
    columns = {}
    devices = sorted(results.devices(folder), key=lambda d: (d.name.startswith("cpu"), d.name))
    for device in devices:
        data = results.load(device)
        speedups = results.speedups(data)
        main = speedups[speedups.clock == results.main_clock(data)]
        main = main[main.direction == DIRECTIONS[0]]
        for dtype in sorted(main.dtype.unique(), reverse=True):
            columns[device, dtype] = main[main.dtype == dtype]
    if not columns:
        return "No measurements yet."
    headers = []
    for device, dtype in columns:
        _, run = newest_run(device)
        kind = "PyTorch reference, " if device.name.startswith("cpu") else ""
        name = run["machine_info"]["device_name"]
        headers.append(f"[{name}]({folder.name}/{device.name}/README.md), {kind}{dtype}")
    own = project_rows(columns.values(), OPERATIONS | SAMPLED)
    drop_ins = project_rows(columns.values(), DROP_INS)
    parts = []
    if own:
        parts += [
            "Speed-up over eager PyTorch / over the best of all baselines in each cell, geometric "
            "mean over the grid:",
            table(["forward + backward", *headers], own),
        ]
    if drop_ins:
        parts += [
            "Of the drop-ins, over the code that they replace / over the better of that and the "
            "same compiled:",
            table(["forward + backward", *headers], drop_ins),
        ]
    return "\n\n".join(parts)


def project_rows(columns, ops):
    """A row an operation; none where no device has it."""
    rows = []
    for op in ops:
        cells = [c[c.op == op] for c in columns]
        if all(c.empty for c in cells):
            continue
        rows.append(
            [f"`{op}`"]
            + [f"{ratio(geometric_mean(c.eager))} / {ratio(geometric_mean(c.best))}" for c in cells]
        )
    return rows
