"""What the machine code of every kernel says, read without a GPU.

``python -m bench.static_report`` compiles each kernel ahead of time, with the arguments and
tiles that its launcher would use, and writes ``results/static/<target>.json``, a table and a
roofline chart. ``--check`` compiles for sm_90 only and compares with ``bench/static_gates.json``;
``--set-gates`` writes that file, 10 % above what is reached.

How instructions are counted: the kernels are straight-line code, so an element costs the
instructions of a program (NOPs and what follows the last EXIT aside) over the elements that a
thread handles. Those that loop over samples are counted by their loop alone: an element is
one of z then, and what is done once for all samples is left out. Bytes an element are those
of the 128-bit global loads and stores: all full-size operands are read and written so, and
what a row needs once is not.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from unittest import mock

# The report compiles for GPUs: the interpreter would leave nothing to compile.
os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget

from bench import static_gates
from bench.machine_code import compile_for, read_amd, read_nvidia
from fused_elbo.kernels import (
    bernoulli_nll,
    elbo_loss,
    gaussian_kl,
    gaussian_nll,
    gaussian_rsample,
    importance_weights,
    rsample_kl,
)
from fused_elbo.kernels.launch import NUM_WARPS

MODULES = (
    bernoulli_nll,
    elbo_loss,
    gaussian_kl,
    gaussian_nll,
    gaussian_rsample,
    importance_weights,
    rsample_kl,
)
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
ROWS = 2**16  # enough for the tile that large problems get
COLUMNS = (64, 1024)
RESULTS = Path("results/static")
# Measured copy bandwidth in TB/s, and instructions a second if every lane issues one a cycle.
CHIPS = {"H100": (3.0, 132 * 4 * 32 * 1.755e9), "H200": (4.3, 132 * 4 * 32 * 1.755e9)}


# Samples of the kernels that loop over them: more than one, which would be compiled in.
SAMPLES = 4


def cases(dtype, cols):
    """name -> (full-size operands read + written, a call of the launcher)."""

    def full(*samples):
        return torch.empty(*samples, ROWS, cols, dtype=dtype)

    acc = torch.float64 if dtype == torch.float64 else torch.float32
    a, b, c, d, grad = full(), full(), full(), full(), torch.empty(ROWS, dtype=acc)
    seed = torch.empty((), dtype=torch.int64)
    q, q_and_prior = (a, b, None, None), (a, b, c, d)
    nll, bernoulli = gaussian_nll.launch_gaussian_nll, bernoulli_nll.launch_bernoulli_nll
    kl, rsample = gaussian_kl.launch_gaussian_kl, gaussian_rsample.launch_rsample
    rsample_backward = gaussian_rsample.launch_rsample_backward
    with_kl, with_kl_backward = rsample_kl.launch_rsample_kl, rsample_kl.launch_rsample_kl_backward
    dlog_ratio = torch.empty(SAMPLES, ROWS, dtype=acc)
    recon_samples = full(SAMPLES)
    flat_samples = recon_samples.view(-1, cols)
    grad_samples = torch.empty(SAMPLES * ROWS, dtype=acc)

    def log_ratio(inputs, **options):
        return lambda: rsample(inputs, seed, SAMPLES, with_log_ratio=True, **options)

    def log_ratio_backward(inputs, needs, **options):
        return lambda: rsample_backward(
            recon_samples, dlog_ratio, inputs, seed, needs, samples=SAMPLES, **options
        )

    two, both, all_four = (True, True, False), (True, True, False, False), (True,) * 4
    recon = (True, False, False)
    fused = {"scale": 0.5, "output": "tiles"}
    return {
        "gaussian_log_prob forward": (3, lambda: nll(a, b, c, 0.0, sign=-1, output="rows")),
        "gaussian_log_prob backward": (
            6,
            lambda: nll(a, b, c, 0.0, sign=-1, grad=grad, needs=(True,) * 3),
        ),
        "gaussian_kl forward": (2, lambda: kl(q)),
        "gaussian_kl backward": (4, lambda: kl(q, grad=grad, needs=both)),
        "gaussian_kl prior forward": (4, lambda: kl(q_and_prior)),
        "gaussian_kl prior backward": (8, lambda: kl(q_and_prior, grad=grad, needs=all_four)),
        "gaussian_rsample forward": (3, lambda: rsample(q, seed, 1, with_log_ratio=False)),
        "gaussian_rsample backward": (
            4,
            lambda: rsample_backward(c[None], None, (None, *q[1:]), seed, both, samples=1),
        ),
        "gaussian_rsample samples forward": (
            1,
            lambda: rsample(q, seed, SAMPLES, with_log_ratio=False),
        ),
        "gaussian_rsample samples backward": (
            1,
            lambda: rsample_backward(
                recon_samples, None, (None, *q[1:]), seed, both, samples=SAMPLES
            ),
        ),
        "rsample_log_ratio forward": (1, log_ratio(q)),
        "rsample_log_ratio antithetic forward": (1, log_ratio(q, antithetic=True)),
        "rsample_log_ratio flat forward": (1, log_ratio(q, flat=True)),
        "rsample_log_ratio prior forward": (1, log_ratio(q_and_prior)),
        "rsample_log_ratio backward": (1, log_ratio_backward(q, both)),
        "rsample_log_ratio antithetic backward": (1, log_ratio_backward(q, both, antithetic=True)),
        "rsample_log_ratio path backward": (1, log_ratio_backward(q, both, gradient="path")),
        "rsample_log_ratio dreg backward": (1, log_ratio_backward(q, both, gradient="dreg")),
        "rsample_log_ratio prior backward": (1, log_ratio_backward(q_and_prior, all_four)),
        "rsample_log_ratio shared forward": (
            1,
            lambda: rsample((a[:64], b[:64], None, None), seed, 64, with_log_ratio=True),
        ),
        "rsample_log_ratio shared backward": (
            1,
            lambda: rsample_backward(
                torch.empty(64, 64, cols, dtype=dtype),
                dlog_ratio.new_empty(64, 64),
                (a[:64], b[:64], None, None),
                seed,
                both,
                samples=64,
            ),
        ),
        "rsample_kl forward": (3, lambda: with_kl(q, seed)),
        "rsample_kl backward": (5, lambda: with_kl_backward(c, grad, q, seed, both)),
        "rsample_kl prior forward": (5, lambda: with_kl(q_and_prior, seed)),
        "rsample_kl prior backward": (
            9,
            lambda: with_kl_backward(full(), grad, q_and_prior, seed, all_four),
        ),
        "gaussian_nll forward": (2, lambda: nll(a, b, None, 0.0, output="rows")),
        "gaussian_nll backward": (3, lambda: nll(a, b, None, 0.0, grad=grad, needs=recon)),
        "gaussian_nll forward + gradient": (3, lambda: nll(a, b, None, 0.0, needs=recon, **fused)),
        "gaussian_nll learned forward": (3, lambda: nll(a, b, c, 0.0, output="rows")),
        "gaussian_nll learned backward": (
            5,
            lambda: nll(a, b, c, 0.0, grad=grad, needs=(True, False, True)),
        ),
        "gaussian_nll learned forward + gradient": (
            5,
            lambda: nll(a, b, c, 0.0, needs=(True, False, True), **fused),
        ),
        "gaussian_nll samples forward": (
            2,
            lambda: nll(flat_samples, b, None, 0.0, output="rows"),
        ),
        "gaussian_nll samples backward": (
            3,
            lambda: nll(flat_samples, b, None, 0.0, grad=grad_samples, needs=recon),
        ),
        "bernoulli_nll samples forward": (2, lambda: bernoulli(flat_samples, b, output="rows")),
        "bernoulli_nll samples backward": (
            3,
            lambda: bernoulli(flat_samples, b, grad=grad_samples, needs=two[1:]),
        ),
        "bernoulli_nll forward": (2, lambda: bernoulli(a, b, output="rows")),
        "bernoulli_nll backward": (3, lambda: bernoulli(a, b, grad=grad, needs=two[1:])),
        "bernoulli_nll forward + gradient": (3, lambda: bernoulli(a, b, needs=two[1:], **fused)),
        "bernoulli_nll probabilities forward": (
            2,
            lambda: bernoulli(a, b, probabilities=True, output="tiles"),
        ),
        "bernoulli_nll probabilities backward": (
            3,
            lambda: bernoulli(a, b, probabilities=True, grad=grad, needs=two[1:]),
        ),
        "bernoulli_nll probabilities forward + gradient": (
            3,
            lambda: bernoulli(a, b, probabilities=True, needs=two[1:], **fused),
        ),
        "elbo_loss total": (
            None,
            lambda: elbo_loss._elbo_loss(a, b, None, 0.0, grad, "gaussian", 1.0, 1.0, [False] * 3),
        ),
        "elbo_loss scale": (2, lambda: elbo_loss._scale_(a, grad[0])),
        "importance_weights": (
            None,
            lambda: importance_weights._forward(dlog_ratio, dlog_ratio, 0.0),
        ),
        "importance_weights of 64": (
            None,
            lambda: importance_weights._forward(grad.view(64, -1), grad.view(64, -1), 0.0),
        ),
    }


def record(call):
    """The last launch that ``call`` makes: (kernel, arguments, constexprs). Nothing runs."""
    launches = []

    def keep(kernel, programs, arguments, constexprs):
        launches.append((kernel, arguments, constexprs))

    patches = [
        mock.patch.object(module, "launch", keep) for module in MODULES if hasattr(module, "launch")
    ]
    for patch in patches:
        patch.start()
    try:
        call()
    finally:
        mock.patch.stopall()
    return launches[-1]


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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
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
    plt.close(figure)


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

`python -m bench.static_report` wrote this with Triton {triton}; it needs no GPU, and nothing
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare sm_90 with the gates")
    parser.add_argument("--set-gates", action="store_true", help="write the gates anew")
    options = parser.parse_args()
    if options.check:
        problems = static_gates.check(report("sm_90"), static_gates.load())
        print("\n".join(problems) or "static report: every kernel is within its gates")
        return 1 if problems else 0
    if options.set_gates:
        static_gates.save(report("sm_90"))
        return 0
    for target_name in TARGETS:
        rows = report(target_name)
        write(target_name, rows)
        if target_name == "sm_90":
            chart(rows, RESULTS / "roofline.png")
            text = README.format(triton=triton.__version__, rows=ROWS, table=table(rows))
            (RESULTS / "README.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
