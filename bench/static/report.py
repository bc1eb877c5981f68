"""One row a kernel, dtype and row length; the table, the chart and the README made of them.

How instructions are counted: the kernels are straight-line code, so an element costs the
instructions of a program (NOPs and what follows the last EXIT aside) over the elements that a
thread handles. Those that loop over samples are counted by their loop alone: an element is
one of z then, and what is done once for all samples is left out. Bytes an element are those
of the 128-bit global loads and stores: all full-size operands are read and written so, and
what a row needs once is not.
"""

import json
import math
import sys
from pathlib import Path

import triton
from matplotlib.figure import Figure
from triton.backends.compiler import GPUTarget

from fused_elbo.kernels.triton.launch import NUM_WARPS

from .cases import COLUMNS, DTYPES, ROWS, cases, record
from .machine_code import compile_for, read_amd, read_nvidia

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
RESULTS = Path("results/static")
# Measured copy bandwidth in TB/s, and instructions a second if every lane issues one a cycle.
CHIPS = {"H100": (3.0, 132 * 4 * 32 * 1.755e9), "H200": (4.3, 132 * 4 * 32 * 1.755e9)}


def report(target_name, dtypes=tuple(DTYPES), columns=COLUMNS):
    """One row a kernel, dtype and row length."""
    target, rows = TARGETS[target_name], []
    total = len(dtypes) * len(columns)
    for step, (dtype_name, cols) in enumerate((d, c) for d in dtypes for c in columns):
        print(f"{target_name} [{step + 1}/{total}] {dtype_name}, {cols} columns", file=sys.stderr)
        dtype = DTYPES[dtype_name]
        for name, (operands, call) in cases(dtype, cols).items():
            kernel, arguments, constexprs = record(call)
            compiled = compile_for(target, kernel, arguments, constexprs, NUM_WARPS)
            sizes = [constexprs[n] for n in constexprs if n.startswith("BLOCK")]
            loops = "log_ratio" in name or "rsample samples" in name
            turn = 2 if constexprs.get("ANTITHETIC") else 1
            per_thread = math.prod(sizes) * turn / (target.warp_size * NUM_WARPS)
            row = {"kernel": name, "dtype": dtype_name, "columns": cols}
            if target.backend == "cuda":
                row |= read_nvidia(compiled, per_thread, loops)
            else:
                row |= read_amd(compiled)
            row["contract_bytes"] = None if operands is None else operands * dtype.itemsize
            rows.append(row)
    return rows


def bound(row, chip):
    """Which of the two takes longer on this chip: moving the bytes or issuing the code."""
    terabytes, issue = CHIPS[chip]
    memory = row["bytes_per_element"] / (terabytes * 1e12)
    arithmetic = row["instructions_per_element"] / issue
    return "memory" if memory >= arithmetic else "issue"


def table(rows):
    """Markdown: what a reader wants of the sm_90 report."""
    lines = [
        "| kernel | dtype | registers | instructions | bytes | bound, H100 | bound, H200 |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        if row["columns"] == COLUMNS[0] and row["dtype"] in ("float32", "bfloat16"):
            lines.append(
                f"| `{row['kernel']}` | {row['dtype']} | {row['registers']} "
                f"| {row['instructions_per_element']} | {row['bytes_per_element']:g} "
                f"| {bound(row, 'H100')} | {bound(row, 'H200')} |"
            )
    return "\n".join(lines)


def chart(rows, path):
    """Instructions against bytes an element; under a chip's line its memory is the bound."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    byte_range = (0, 40)
    for chip, style in zip(CHIPS, ("-", "--"), strict=True):
        terabytes, issue = CHIPS[chip]
        slope = issue / (terabytes * 1e12)
        label = f"{chip}: issue time = memory time at {terabytes} TB/s"
        axes.plot(byte_range, [slope * x for x in byte_range], style, color="0.3", label=label)
    colours = {"float32": "#0072B2", "bfloat16": "#D55E00"}  # Okabe-Ito
    markers = {"forward": "o", "backward": "s", "gradient": "D"}
    for row in rows:
        if row["columns"] != COLUMNS[0] or row["dtype"] not in colours:
            continue
        x, y = row["bytes_per_element"], row["instructions_per_element"]
        marker = markers.get(row["kernel"].split()[-1])
        if marker is None:
            continue
        axes.plot(x, y, marker, color=colours[row["dtype"]], markersize=6)
        if row["kernel"] in ("rsample_kl forward", "rsample_kl backward"):
            offset = (6, -3) if row["dtype"] == "float32" else (4, 7)
            axes.annotate(row["kernel"], (x, y), offset, textcoords="offset points", fontsize=7)
    for dtype, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=dtype)
    for role, marker in markers.items():
        name = {"gradient": "forward + gradient"}.get(role, role)
        axes.plot([], [], marker, color="0.5", label=name)
    axes.set(
        xlim=byte_range,
        ylim=(0, 100),
        xlabel="bytes moved an element",
        ylabel="instructions issued an element",
        title="Below a line the kernel is bound by memory (sm_90, rows of 64, predicted)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def write(target_name, rows):
    RESULTS.mkdir(parents=True, exist_ok=True)
    document = {
        "target": target_name,
        "triton": triton.__version__,
        "warps": NUM_WARPS,
        "rows": ROWS,
        "kernels": rows,
    }
    (RESULTS / f"{target_name}.json").write_text(json.dumps(document, indent=1) + "\n")


README = """# What the machine code says

`python -m bench.static` wrote this with Triton {triton}; it needs no GPU, and nothing
here was timed. Every kernel, in the tile that a problem of {rows} rows gets, compiled for
sm_80, sm_90, sm_100 and (compiled only) gfx942: the JSON beside this file has registers,
stack, local and shared memory, the width of every global access, instructions and bytes an
element. No kernel has a stack frame, local memory or a spill on sm_80 and sm_90; on sm_100 one
does, the learned sigma's backward in float64 at 64 columns, of 8 bytes. All full-size
operands are read and written by 128-bit accesses.

Instructions are those of a program, NOPs and what follows the last EXIT aside, over the
elements of its tile: the code is straight-line. The kernels of K samples are counted by one
turn of their loop over samples, so a row of `rsample_log_ratio` is the cost of an element of
z; mu and logvar are read once, outside. (`elbo_loss total` and `importance_weights` have
loops; their figures are for one turn of each.) The predicted bound compares the time to move
the bytes (H100 3.0, H200 4.3 TB/s, measured copies) with the time to issue the instructions
(132 SMs x 4 x 32 lanes at 1.755 GHz, one a cycle: the best case).

sm_90, rows of 64:

{table}

![instructions against bytes](roofline.png)
"""


def write_all():
    """``results/static/``, anew."""
    for target_name in TARGETS:
        rows = report(target_name)
        write(target_name, rows)
        if target_name == "sm_90":
            chart(rows, RESULTS / "roofline.png")
            text = README.format(triton=triton.__version__, rows=ROWS, table=table(rows))
            (RESULTS / "README.md").write_text(text)
