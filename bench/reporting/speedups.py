"""Tables of speed-ups: of a device, of all devices, of what was lost and what was not timed."""

from ..harness.cases import DIRECTIONS
from . import on_cpu
from .formats import geometric_mean, ratio, seconds, short_name
from .results import dtypes, present
from .tables import Cell, Table, tinted

MOST_LOSSES = 20
SHORT_CLOCKS = {"device": "device clock", "host": "wall clock"}
SPEEDUPS = [
    "operation", ("direction", None), ("dtype", None), ("over eager", "over\neager"),
    ("over best baseline", "over\nbest"), ("range", None), (None, "worst cell"),
    (None, "best cell"), ("faster / within noise / slower", "won/even\n/lost"),
]  # fmt: skip
LOSSES = ["operation", "direction", "dtype", "B x D", "clock", "speed-up", "to", "fused_elbo"]
NOT_TIMED = ["operation", "provider", "B x D", "dtype", "direction", "status", "reason"]


def shape(cell, samples="K = {}, ", times=" x "):
    """B x D, with K in front where there are samples or components."""
    first = samples.format(cell.samples) if cell.counts_samples else ""
    return f"{first}{cell.batch}{times}{cell.latent}"


def short_shape(cell):
    """64x16, or 8x64x16 with K samples or components."""
    return shape(cell, "{}x", "x")


def counted(cells, column="best", noise="beyond_noise"):
    """(faster, within noise, slower): how many cells."""
    apart = cells[noise]
    faster, slower = (apart & (cells[column] > 1)).sum(), (apart & (cells[column] < 1)).sum()
    return faster, len(cells) - faster - slower, slower


def verdicts(cells):
    """How many cells are faster, within noise, and slower than the best baseline."""
    return " / ".join(map(str, counted(cells)))


def speedup_table(speedups, suites, title=""):
    """A row per operation, direction and dtype: speed-ups over eager and the best baseline."""
    rows = []
    for op in present(speedups, suites):
        for direction in DIRECTIONS:
            of = speedups[(speedups.op == op) & (speedups.direction == direction)]
            for dtype in dtypes(of):
                name = Cell(f"`{op}`", short=short_name(op))
                rows.append([name, direction, dtype, *summarised(of[of.dtype == dtype])])
    return Table(SPEEDUPS, rows, title)


def summarised(cells):
    means = [geometric_mean(cells.eager), geometric_mean(cells.best)]
    ends = [cells.loc[cells.best.idxmin()], cells.loc[cells.best.idxmax()]]
    counts = verdicts(cells)
    return [
        *(tinted(mean, ratio(mean)) for mean in means),
        " … ".join(ratio(cell.best) for cell in ends),
        *(tinted(cell.best, f"{ratio(cell.best)} {short_shape(cell)}") for cell in ends),
        Cell(counts, short=counts.replace(" ", "")),
    ]


def losses(speedups):
    """Parts: the cells where fused_elbo is slower than the best baseline by more than noise."""
    lost = speedups[(speedups.best < 1) & speedups.beyond_noise].sort_values("best")
    if lost.empty:
        return [f"In none of {len(speedups)} cells (all clocks) by more than noise."]
    rows = [
        [f"`{c.op}`", c.direction, c.dtype, shape(c), c.clock, ratio(c.best), c.rival,
         seconds(c.median_s)]
        for c in lost.head(MOST_LOSSES).itertuples()
    ]  # fmt: skip
    shown = f"; the {len(rows)} worst" if len(lost) > len(rows) else ""
    text = f"In {len(lost)} of {len(speedups)} cells (all clocks) by more than noise{shown}:"
    return [text, Table(LOSSES, rows)]


def not_timed(table):
    """Parts: what was wrong or did not run, once for each reason."""
    bad = table[table.status != "right"].drop_duplicates(["op", "provider", "dtype", "reason"])
    if bad.empty:
        return []
    rows = [
        [f"`{r.op}`", r.provider, shape(r), r.dtype, r.direction, r.status,
         str(r.reason).replace("|", "\\|")]
        for r in bad.itertuples()
    ]  # fmt: skip
    return ["## Not timed", Table(NOT_TIMED, rows)]


def not_timed_in_short(run):
    """Lines for the terminal: what one run did not time, once for each operation and provider."""
    found = {}
    for row in run["not_timed"]:
        key = row["status"], row.get("provider"), row.get("op") or row.get("id")
        found.setdefault(key, []).append(str(row["reason"]))
    for (status, provider, op), reasons in found.items():
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        yield f"{status}, not timed: {provider or ''} {op}: {reasons[0]}{more}"


def of_devices(devices, suites, link):
    """Forward + backward over eager / over the best; None if empty.

    A column for each device and clock, a row for each operation and dtype: float32 if it names
    none. On a GPU the clock of the kernels comes first, and then the clock on the wall, by which
    a training loop waits.
    """
    columns = {}
    for device in devices:
        cells = device.all_speedups[device.all_speedups.direction == DIRECTIONS[0]]
        cells = cells[cells.suite.isin(suites)]
        shown = device.infos(device.right[device.right.suite.isin(suites)])
        kernels = on_cpu.in_headers(shown) if device.on_cpu else "Triton's kernels"
        for clock in dict.fromkeys((device.clock, "host")):
            at = cells[cells.clock == clock]
            if not at.empty:
                columns[f"{link(device)}, {kernels}, {SHORT_CLOCKS[clock]}"] = at
    of = {
        (op, dtype): None
        for s in suites
        for cells in columns.values()
        for op in present(cells, [s])
        for dtype in dtypes(cells[cells.op == op])
    }
    rows = [
        [
            f"`{op}`" if dtype == "float32" else f"`{op}`, {dtype}",
            *(both_means(at[(at.op == op) & (at.dtype == dtype)]) for at in columns.values()),
        ]
        for op, dtype in of
    ]
    return Table(["forward + backward", *columns], rows) if rows else None


def both_means(cells):
    return f"{ratio(geometric_mean(cells.eager))} / {ratio(geometric_mean(cells.best))}"
