"""K samples in words and tables: a device's README and the terminal."""

import math

from . import report, samples_plot, samples_results
from .cases import EVENTS, HIDDEN

INTRO = (
    "Forward + backward, for K samples of z for each of B examples. `iwae_encoder`: the samples "
    "and their log p(z) - log q(z|x). `iwae_step`: the whole step of an importance-weighted "
    f"autoencoder, with an MLP decoder (D to {HIDDEN}, ReLU, to {EVENTS} logits) whose weights "
    "get gradients too; `fused_elbo-chunked` is `chunked_iwae_loss` with 8 samples at a time."
)
NOT_THE_KERNELS = (
    "On a CPU these are the public functions on their PyTorch reference: no kernel is in these "
    "figures."
)
SHARE = (
    "Share of the loss in a step: 1 - decoder alone / step, in percent, both timed in one run. "
    "The loss is sampling, likelihood and bound. The decoder alone is the compiled one for the "
    "compiler, the eager one for all others; its own time varies from call to call too, so a "
    "small share may come out negative."
)
CPU_LARGEST = (
    "Largest K of a step whose peak of live allocations, on top of its inputs, stays within a "
    "stated budget of {}: predicted from the peaks at two small K, then run and counted at the "
    "K given."
)
GPU_LARGEST = (
    "Largest K of a step that a GPU of {} runs, to a sixteenth: doubled until it was out of "
    "memory, then the gap halved. The compiler has symbolic sizes here; CUDA-graph trees are "
    "left out."
)


def published(cells):
    """The cells at the shapes of the charts, of each operation and dtype."""
    keep = [
        index
        for _, group in cells.groupby(["op", "dtype"], sort=False)
        for shape in samples_results.chosen_shapes(group)
        for index in samples_results.at_shape(group, shape).index
    ]
    return cells.loc[keep]


EAGER_HEADERS = [
    "operation", "dtype", "B x D", "K", "fused_elbo", "speed-up over eager", "over best baseline",
    "peak memory", "of eager's", "of the least baseline's",
]  # fmt: skip


def eager_rows(cells):
    return [
        [
            f"`{c.op}`", c.dtype, f"{c.batch} x {c.latent}", c.samples, report.seconds(c.fused_s),
            report.ratio(c.eager_s / c.fused_s) + ("" if c.apart else " (within noise)"),
            f"{report.ratio(c.best_s / c.fused_s)} ({c.best})", report.size(c.fused_bytes),
            report.ratio(c.fused_bytes / c.eager_bytes),
            report.ratio(c.fused_bytes / c.least_bytes),
        ]
        for c in published(cells).itertuples()
    ]  # fmt: skip


def verdict(cells):
    """In how many cells fused_elbo is slower than eager, and in how many it takes less memory."""
    slower = (cells.apart & (cells.fused_s > cells.eager_s)).sum()
    faster = (cells.apart & (cells.fused_s < cells.eager_s)).sum()
    memory = (cells.fused_bytes / cells.eager_bytes).dropna()
    less, more = (memory < 0.99).sum(), (memory > 1.01).sum()
    return (
        f"Of {len(cells)} cells `fused_elbo` is faster than eager in {faster} and slower in "
        f"{slower} (the rest within noise); it takes less memory than eager in {less} of "
        f"{len(memory)}, as much, to 1 %, in {len(memory) - less - more}, more in {more}."
    )


def share_table(shares):
    """(headers, rows): a column a provider."""
    names = samples_plot.plot.providers(shares)
    rows = []
    for key, cell in shares.groupby(["dtype", *samples_results.SHAPE, "samples"]):
        dtype, batch, latent, samples = key
        by_name = cell.set_index("provider").share
        values = [f"{100 * by_name[n]:.0f}" if n in by_name else report.DASH for n in names]
        rows.append([dtype, f"{batch} x {latent}", samples, *values])
    return ["dtype", "B x D", "K", *names], rows


def largest_text(largest):
    one = largest.iloc[0]
    intro = (CPU_LARGEST if one.budget else GPU_LARGEST).format(report.size(one.limit))
    return f"{intro} B = {one.batch}, D = {one.latent}, float32."


def largest_rows(largest):
    return [
        [
            row.provider,
            f"{row.samples:,}" + (" or more" if row.ended == "not reached" else ""),
            report.size(row.bytes),
            report.seconds(row.median_s),
            ", ".join(map(str, row.tried)),
        ]
        for row in largest.itertuples()
    ]


LARGEST_HEADERS = ["provider", "largest K", "its peak memory", "its time, once", "K tried"]


def sections(device, right, clock, kind):
    """Parts of a device's README; none where nothing of it was measured."""
    cells = samples_results.against_eager(right, clock)
    shares = samples_results.shares(right[right.clock == clock])
    largest = samples_results.largest(device)
    parts = []
    if not cells.empty:
        parts += [verdict(cells), report.table(EAGER_HEADERS, eager_rows(cells))]
    if not shares.empty:
        parts += [SHARE, report.table(*share_table(shares))]
    if not largest.empty:
        parts += [largest_text(largest), report.table(LARGEST_HEADERS, largest_rows(largest))]
    if not parts:
        return []
    intro = f"{INTRO} {NOT_THE_KERNELS}" if kind == "cpu" else INTRO
    return ["## K samples", intro, *parts]


def show(device, right, clock, console):
    """Times and peak memory by K in the terminal."""
    from . import table  # which shows this among its own

    sampled = samples_results.of_samples(right)
    sampled = sampled[(sampled.clock == clock) & (sampled.op != "decoder")]
    for (op, dtype), one in sampled.groupby(["op", "dtype"], sort=False):
        batch, latent = samples_results.chosen_shapes(one)[-1]
        cells = samples_results.at_shape(one, (batch, latent))
        names = samples_plot.plot.providers(cells)
        title = f"{op}, {dtype}, {batch} x {latent}: time of a call (ms) / peak memory (MiB)"
        shown = table.bare_table(title, "K")
        for name in names:
            shown.add_column(table.HEADERS.get(name, name), justify="right", no_wrap=True)
        for samples, row in cells.groupby("samples"):
            shown.add_row(str(samples), *(entry(row.set_index("provider"), n) for n in names))
        console.print(shown)
    shares = samples_results.shares(right[right.clock == clock])
    if not shares.empty:
        headers, rows = share_table(shares)
        shown = table.bare_table("share of the loss in a step (%)", headers[0])
        for name in headers[1:]:
            shown.add_column(table.HEADERS.get(name, name), justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(*map(str, row))
        console.print(shown)
    largest = samples_results.largest(device)
    if not largest.empty:
        one = largest.iloc[0]
        title = f"largest K within {report.size(one.limit)}, {one.batch} x {one.latent}"
        shown = table.bare_table(title, "provider")
        for name in LARGEST_HEADERS[1:4]:
            shown.add_column(name, justify="right", no_wrap=True)
        for row in largest_rows(largest):
            shown.add_row(*row[:4])
        console.print(shown)


def entry(row, name):
    """12.3 / 4.56, milliseconds and MiB."""
    if name not in row.index:
        return report.DASH
    bytes_ = row.peak_bytes[name]
    memory = report.DASH if math.isnan(bytes_) else f"{bytes_ / 2**20:.3g}"
    return f"{1e3 * row.median_s[name]:.3g}/{memory}"
