"""The report in words: ``results/static/README.md``."""

from .charts import CHIPS, COLUMNS


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
        if row["columns"] == COLUMNS and row["dtype"] in ("float32", "bfloat16"):
            moved = f"{row['bytes_per_element']:g} | {bound(row, 'H100')} | {bound(row, 'H200')}"
            # Their elements, of pairs and of mixtures, are not those that are moved.
            others = "mixture_log_prob", "marginals_log_prob", "discretized_mix_logistic"
            if row["kernel"].startswith(others):
                moved = "- | issue | issue"
            lines.append(
                f"| `{row['kernel']}` | {row['dtype']} | {row['registers']} "
                f"| {row['instructions_per_element']} | {moved} |"
            )
    return "\n".join(lines)


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
loops; their figures are for one turn of each.) Those of `mixture_log_prob` are counted by their
loops over latents, where an element is a latent of a pair of row and component; beside them is one
exponential a pair. Those of `marginals_log_prob` are counted alike, by their loops over components
or rows; among them is one exponential an element. An element of `discretized_mix_logistic_nll` is a
mixture of a pixel, that is ten numbers; a tile has 16 mixtures for 10. The predicted bound compares
the time to move the bytes (H100 3.0, H200 4.3 TB/s, measured copies) with the time to issue the
instructions (132 SMs x 4 x 32 lanes at 1.755 GHz, one a cycle: the best case).

sm_90, rows of 64:

{table}

![instructions against bytes](roofline.png)
"""
