"""What the chart and the tables of the drop-ins are made of. No torch."""

from ..harness.providers import COMPILED
from ..reporting.results import CELL


def cells(device):
    """A row a loss, dtype and batch: times of the original, the compiled and the drop-in.

    Beside what speed-ups have: ``original_s``, ``compiled_s`` (of the compiler's fastest mode; NaN
    where it has none) and ``compiled``, the speed-up over that.
    """
    right, ours = device.right, device.speedups[device.speedups.suite == "drop_ins"]
    compiled = right[right.provider.isin(COMPILED)].groupby([*CELL, "clock"]).median_s.min()
    table = ours.merge(compiled.rename("compiled_s"), on=[*CELL, "clock"], how="left")
    return table.assign(
        original_s=table.eager * table.median_s,
        compiled=table.compiled_s / table.median_s,
    ).sort_values(["dtype", "order", "batch"], ascending=[False, True, True])
