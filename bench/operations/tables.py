"""The operations in tables: the terminal. No torch."""

from ..harness.cases import DIRECTIONS
from ..harness.providers import PROVIDERS
from ..reporting.formats import DASH, digits
from ..reporting.results import dtypes, present, providers
from ..reporting.tables import Cell, Table


def terminal(device):
    """Times at the largest problem: a table per dtype and direction."""
    own = device.right[(device.right.suite == "operations") & (device.right.clock == device.clock)]
    for dtype in dtypes(own):
        for direction in DIRECTIONS:
            cells = own[(own.direction == direction) & (own.dtype == dtype)]
            if not cells.empty:
                yield times(cells, f"time of a call: {direction}, {dtype}")


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
