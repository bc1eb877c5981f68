"""The operations in tables: README.md and the terminal. No torch."""

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
from ..reporting import speedups
from ..reporting.formats import DASH, digits
from ..reporting.results import present, providers
from ..reporting.tables import Cell, Table
from .charts import OWN

PROJECT = (
    "Speed-up over eager PyTorch / over the best of all baselines in each cell, geometric "
    "mean over the grid:"
)


def project(devices, link):
    """For README.md: all devices side by side."""
    table = speedups.of_devices(devices, OWN, link)
    return [PROJECT, table] if table else []


def terminal(device):
    """Speed-ups and, at the largest problem, times: a table a dtype and direction."""
    own = device.right[device.right.suite.isin(OWN) & (device.right.clock == device.clock)]
    for dtype in sorted(own.dtype.unique(), reverse=True):
        for direction in DIRECTIONS:
            cells, ratios = (
                table[(table.direction == direction) & (table.dtype == dtype)]
                for table in (own, device.speedups)
            )
            what = f"{direction}, {dtype}"
            if not cells.empty:
                yield speedups.speedup_table(ratios, OWN, f"speed-up of fused_elbo: {what}")
            cells = cells[cells.suite == "operations"]
            if not cells.empty:
                yield times(cells, f"time of a call: {what}")


def times(cells, title):
    """Median times at the largest problem, a column a provider; the fastest in bold."""
    size = cells.loc[(cells.batch * cells.latent).idxmax()]
    cells = cells[cells.batch * cells.latent == size.batch * size.latent]
    names = providers(cells)
    scale, unit = (1e-3, "ms") if cells.median_s.min() >= 1e-3 else (1e-6, "µs")
    rows = []
    for op in present(cells):
        one = cells[cells.op == op].set_index("provider")
        texts = {name: Cell(digits(time / scale)) for name, time in one.median_s.items()}
        fastest = one.median_s.idxmin()
        texts[fastest] = texts[fastest]._replace(style="bold")
        floor = digits(one.floor_s.iloc[0] / scale)
        rows.append([op, *(texts.get(name, DASH) for name in names), floor])
    columns = ["operation", *(PROVIDERS[name].header for name in names), "floor"]
    return Table(columns, rows, f"{title}, {size.batch} x {size.latent} ({unit})")
