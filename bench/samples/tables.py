"""K samples in tables: a device's README and the terminal. No torch."""

import math

from ..harness.cases import EVENTS, HIDDEN
from ..harness.providers import PROVIDERS
from ..reporting import on_cpu
from ..reporting.formats import DASH, ratio, seconds, size
from ..reporting.results import providers
from ..reporting.speedups import counted
from ..reporting.tables import Table
from . import results

INTRO = (
    "Forward + backward, for K samples of z for each of B examples. `iwae_encoder`: the samples "
    "and their log p(z) - log q(z|x). `iwae_step`: the whole step of an importance-weighted "
    f"autoencoder, with an MLP decoder (D to {HIDDEN}, ReLU, to {EVENTS} logits) whose weights "
    "get gradients too; `fused_elbo-chunked` is `chunked_iwae_loss` with 8 samples at a time."
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
        for shape in results.chosen_shapes(group)
        for index in results.at_shape(group, shape).index
    ]
    return cells.loc[keep]


EAGER = [
    "operation", "dtype", "B x D", "K", "fused_elbo", "speed-up over eager", "over best baseline",
    "peak memory", "of eager's", "of the least baseline's",
]  # fmt: skip


def against_eager(cells):
    rows = [
        [
            f"`{c.op}`", c.dtype, f"{c.batch} x {c.latent}", c.samples, seconds(c.median_s),
            ratio(c.eager) + ("" if c.eager_beyond_noise else " (within noise)"),
            f"{ratio(c.best)} ({c.rival})", size(c.peak_bytes),
            ratio(c.peak_bytes / c.eager_bytes), ratio(c.peak_bytes / c.least_bytes),
        ]
        for c in published(cells).itertuples()
    ]  # fmt: skip
    return Table(EAGER, rows)


def verdict(cells):
    """In how many cells fused_elbo is slower than eager, and in how many it takes less memory."""
    faster, _, slower = counted(cells, "eager", "eager_beyond_noise")
    memory = (cells.peak_bytes / cells.eager_bytes).dropna()
    less, more = (memory < 0.99).sum(), (memory > 1.01).sum()
    return (
        f"Of {len(cells)} cells `fused_elbo` is faster than eager in {faster} and slower in "
        f"{slower} (the rest within noise); it takes less memory than eager in {less} of "
        f"{len(memory)}, as much, to 1 %, in {len(memory) - less - more}, more in {more}."
    )


def headers(names):
    return [(name, PROVIDERS[name].header) for name in names]


def share_table(shares):
    """A column a provider."""
    names = providers(shares)
    rows = []
    for key, cell in shares.groupby(["dtype", *results.SHAPE, "samples"]):
        dtype, batch, latent, samples = key
        by_name = cell.set_index("provider").share
        values = [f"{100 * by_name[n]:.0f}" if n in by_name else DASH for n in names]
        rows.append([dtype, f"{batch} x {latent}", samples, *values])
    columns = ["dtype", "B x D", "K", *headers(names)]
    return Table(columns, rows, "share of the loss in a step (%)")


def largest_table(largest):
    """(sentence, table)"""
    one = largest.iloc[0]
    intro = (CPU_LARGEST if one.budget else GPU_LARGEST).format(size(one.limit))
    intro = f"{intro} B = {one.batch}, D = {one.latent}, float32."
    rows = [
        [
            row.provider,
            f"{row.samples:,}" + (" or more" if row.ended == "not reached" else ""),
            size(row.bytes),
            seconds(row.median_s),
            ", ".join(map(str, row.tried)),
        ]
        for row in largest.itertuples()
    ]
    columns = ["provider", "largest K", "its peak memory", "its time, once", ("K tried", None)]
    title = f"largest K within {size(one.limit)}, {one.batch} x {one.latent}"
    return intro, Table(columns, rows, title)


def sections(device):
    """Parts of a device's README; none where nothing of it was measured."""
    cells = results.against_eager(device)
    shares = results.shares(device.right[device.right.clock == device.clock])
    largest = results.largest(device)
    parts = []
    if not cells.empty:
        parts += [verdict(cells), against_eager(cells)]
    if not shares.empty:
        parts += [SHARE, share_table(shares)]
    if not largest.empty:
        parts += largest_table(largest)
    intro = f"{INTRO} {on_cpu.of_samples(device.info)}" if device.on_cpu else INTRO
    return ["## K samples", intro, *parts] if parts else []


def terminal(device):
    """Times and peak memory by K, shares, the largest K."""
    right = device.right[device.right.clock == device.clock]
    sampled = results.of_samples(right)
    for (op, dtype), one in sampled[sampled.op != "decoder"].groupby(["op", "dtype"], sort=False):
        yield by_samples(one, f"{op}, {dtype}")
    shares = results.shares(right)
    if not shares.empty:
        yield share_table(shares)
    largest = results.largest(device)
    if not largest.empty:
        yield largest_table(largest)[1]


def by_samples(table, what):
    """At one shape, a row per K and a column per provider."""
    batch, latent = results.chosen_shapes(table)[-1]
    cells = results.at_shape(table, (batch, latent))
    names = providers(cells)
    rows = [
        [samples, *(entry(row.set_index("provider"), name) for name in names)]
        for samples, row in cells.groupby("samples")
    ]
    title = f"{what}, {batch} x {latent}: time of a call (ms) / peak memory (MiB)"
    return Table(["K", *headers(names)], rows, title)


def entry(row, name):
    """12.3 / 4.56, milliseconds and MiB."""
    if name not in row.index:
        return DASH
    bytes_ = row.peak_bytes[name]
    memory = DASH if math.isnan(bytes_) else f"{bytes_ / 2**20:.3g}"
    return f"{1e3 * row.median_s[name]:.3g}/{memory}"
