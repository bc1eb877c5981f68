"""One row per kernel, dtype and row length, for each target, into ``results/static/``.

Instructions per element: most kernels are straight-line code, so they are the instructions of a
program over the elements that a thread handles, without NOPs and without what follows the last
EXIT. A StaticCase says where only the instructions of loops count. Where that is the loop over
samples, an element is one of z, and the work that is done once for all samples is left out. Where
it is the innermost loops, an element is a latent of a pair of row and component.

Bytes per element are those of the 128-bit global loads and stores. All full-size operands are read
and written so. What a row needs once does not count.
"""

import json
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget

from fused_elbo.kernels.triton.launch import NUM_WARPS

from .cases import cases, record
from .charts import chart
from .machine_code import compile_for, read_amd, read_nvidia
from .operands import COLUMNS, DTYPES, ROWS
from .tables import README, table

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
RESULTS = Path("results/static")


def report(target_name, dtypes=tuple(DTYPES), columns=COLUMNS):
    """One row per kernel, dtype and row length, by one process per core."""
    parts = [(target_name, dtype_name, cols) for dtype_name in dtypes for cols in columns]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        found = []
        for part, rows in zip(parts, processes.map(compile_part, parts), strict=True):
            print(*part, "columns", file=sys.stderr)
            found += rows
    return found


def compile_part(part):
    """The rows of one target, dtype and row length."""
    target_name, dtype_name, cols = part
    target, dtype, rows = TARGETS[target_name], DTYPES[dtype_name], []
    for case in cases(dtype, cols):
        kernel, arguments, constexprs = record(case.call)
        compiled = compile_for(target, kernel, arguments, constexprs, NUM_WARPS)
        sizes = [constexprs[n] for n in constexprs if n.startswith("BLOCK")]
        turn = 2 if constexprs.get("ANTITHETIC") else 1
        per_thread = math.prod(sizes) * turn / (target.warp_size * NUM_WARPS)
        row = {"kernel": case.name, "dtype": dtype_name, "columns": cols}
        if target.backend == "cuda":
            row |= read_nvidia(compiled, per_thread, case.loops)
        else:
            row |= read_amd(compiled)
        operands = case.operands
        row["contract_bytes"] = None if operands is None else operands * dtype.itemsize
        rows.append(row)
    return rows


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


def write_all():
    """``results/static/``, anew."""
    for target_name in TARGETS:
        rows = report(target_name)
        write(target_name, rows)
        if target_name == "sm_90":
            chart(rows, RESULTS / "roofline.png")
            text = README.format(triton=triton.__version__, rows=ROWS, table=table(rows))
            (RESULTS / "README.md").write_text(text)
