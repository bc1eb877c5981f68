"""What the chart and tables of the drop-ins are made of, from a device's rows: no torch."""

from .cases import DROP_INS
from .results import CELL
from .samples_results import COMPILED


def cells(right, speedups, clock):
    """A row a loss, dtype and batch: times of the original, the compiled and the drop-in.

    Beside what ``results.speedups`` has: ``original_s``, ``compiled_s`` (of the compiler's fastest
    mode; NaN where it has none) and ``compiled``, the speed-up over that.
    """
    ours = speedups[speedups.op.isin(DROP_INS) & (speedups.clock == clock)]
    compiled = right[right.provider.isin(COMPILED)].groupby([*CELL, "clock"]).median_s.min()
    table = ours.merge(compiled.rename("compiled_s"), on=[*CELL, "clock"], how="left")
    order = {op: i for i, op in enumerate(DROP_INS)}
    return table.assign(
        original_s=table.eager * table.median_s,
        compiled=table.compiled_s / table.median_s,
        order=table.op.map(order),
    ).sort_values(["dtype", "order", "batch"], ascending=[False, True, True])
