"""The report in words: ``results/static/README.md``."""

from .charts import CHIPS, COLUMNS


def bound(row, chip):
    """The longer of two on this chip: moving the bytes, or issuing the code."""
    terabytes, issue = CHIPS[chip]
    memory = row["bytes_per_element"] / (terabytes * 1e12)
    arithmetic = row["instructions_per_element"] / issue
    return "memory" if memory >= arithmetic else "issue"


def table(rows):
    """The sm_90 report in Markdown."""
    lines = [
        "| kernel | dtype | registers | instructions | bytes | bound, H100 | bound, H200 |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        if row["columns"] == COLUMNS and row["dtype"] in ("float32", "bfloat16"):
            moved = f"{row['bytes_per_element']:g} | {bound(row, 'H100')} | {bound(row, 'H200')}"
            # Their elements are pairs or mixtures, and not those that are moved.
            others = "mixture_log_prob", "marginals_log_prob", "discretized_mix_logistic"
            if row["kernel"].startswith(others):
                moved = "- | issue | issue"
            lines.append(
                f"| `{row['kernel']}` | {row['dtype']} | {row['registers']} "
                f"| {row['instructions_per_element']} | {moved} |"
            )
    return "\n".join(lines)


README = """# What the machine code says

`python -m bench.static` wrote this with Triton {triton}. It needs no GPU, and nothing was timed. It
compiles every kernel for sm_80, sm_90, sm_100 and (compiled only) gfx942, in the tile that a
problem of {rows} rows gets. The JSON beside this file has registers, stack, local and shared
memory, the width of every global access, and instructions and bytes per element. No kernel has a
stack frame, local memory or a spill on sm_80 and sm_90. On sm_100 one has 8 bytes: the backward
kernel of the learned sigma in float64 at 64 columns. All full-size operands are read and written by
128-bit accesses.

- **Instructions** are those of a program, up to the last EXIT and without NOPs, over the elements
  of its tile. Most kernels are straight-line code.
- **K samples**: one turn of the loop over samples counts, so a row of `rsample_log_ratio` is the
  cost of an element of z. The kernel reads mu and logvar once, outside of the loop. The figures of
  `elbo_loss total` and `importance_weights` are for one turn of each of their loops, too.
- **All pairs**: the loops over latents of `mixture_log_prob` count, and an element is a latent of a
  pair of row and component; beside them there is one exponential per pair. The loops of
  `marginals_log_prob` are over components or rows, and have one exponential per element.
- **Mixtures of logistics**: an element of `discretized_mix_logistic_nll` is a mixture of a pixel,
  which is ten numbers. A tile has 16 mixtures for 10.
- **Bound**: the time to move the bytes (H100 3.0, H200 4.3 TB/s, measured copies) against the time
  to issue the instructions (132 SMs x 4 x 32 lanes at 1.755 GHz, one per cycle: the best case).

sm_90, rows of 64:

{table}

![instructions against bytes](roofline.png)
"""
