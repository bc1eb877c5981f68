"""``python -m bench.table [DEVICE ...]``: the results as a table in the terminal."""

import argparse

import rich
from rich import box
from rich.table import Table
from rich.text import Text

from . import drop_ins_report, plot, quality_report, report, results, samples_report
from .cases import DIRECTIONS, DROP_INS, OPERATIONS, SAMPLED
from .plot import present, providers

# In narrow columns.
HEADERS = {
    "compile": "com-\npile",
    "distributions": "distri-\nbutions",
    "compile-max": "com-\npile-\nmax",
    "compile-reduce-overhead": "reduce-\nover-\nhead",
    "fused_elbo": "fused_\nelbo",
    "fused_elbo-chunked": "fused_\nelbo-\nchunked",
}


def tint(value, shown):
    """Blue where fused_elbo is faster, red where it is slower, plain within 3 %."""
    style = "bold blue" if value > 1.03 else "bold red" if value < 0.97 else ""
    return Text(shown, style=style, justify="right")


def bare_table(title, first="operation"):
    """A table without frames, narrow enough for 80 columns."""
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.padding = (0, 0, 0, 0)
    shown.add_column(first, no_wrap=True)
    return shown


def speedup_table(speedups, direction, dtype, title):
    """Speed-ups of an operation over the grid, a row an operation."""
    shown = bare_table(title)
    for name in ("over\neager", "over\nbest", "worst cell", "best cell", "won/even\n/lost"):
        shown.add_column(name, justify="right", no_wrap=True)
    cells = speedups[(speedups.direction == direction) & (speedups.dtype == dtype)]
    for op in present(cells[~cells.op.isin(DROP_INS)]):
        one = cells[cells.op == op]
        eager, best = report.geometric_mean(one.eager), report.geometric_mean(one.best)
        worst, top = one.loc[one.best.idxmin()], one.loc[one.best.idxmax()]
        shown.add_row(
            op,
            tint(eager, report.ratio(eager)),
            tint(best, report.ratio(best)),
            tint(worst.best, f"{report.ratio(worst.best)} {shape(worst)}"),
            tint(top.best, f"{report.ratio(top.best)} {shape(top)}"),
            report.verdicts(one).replace(" ", ""),
        )
    return shown


def shape(cell):
    """64x16, or 8x64x16 with K samples."""
    samples = f"{cell.samples}x" if cell.op in SAMPLED else ""
    return f"{samples}{cell.batch}x{cell.latent}"


def time_table(cells, title):
    """Median times at the largest problem, a column a provider; the fastest in bold."""
    cells = cells[cells.batch * cells.latent == (cells.batch * cells.latent).max()]
    names = providers(cells)
    scale, unit = (1e-3, "ms") if cells.median_s.min() >= 1e-3 else (1e-6, "µs")
    shown = bare_table(f"{title} ({unit})")
    for name in (*names, "floor"):
        shown.add_column(HEADERS.get(name, name), justify="right", no_wrap=True)
    for op in present(cells):
        one = cells[cells.op == op].set_index("provider")
        fastest = one.median_s.idxmin()
        texts = []
        for name in names:
            value = digits(one.median_s[name] / scale) if name in one.index else report.DASH
            texts.append(Text(value, style="bold" if name == fastest else ""))
        shown.add_row(op, *texts, digits(one.floor_s.iloc[0] / scale))
    return shown


def digits(value):
    """Three digits, and no exponent.

    >>> digits(1.2345), digits(1234.5)
    ('1.23', '1,234')
    """
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def show(device, console):
    """All tables of a device."""
    data = results.load(device)
    right = results.newest(data)
    clock = results.main_clock(right)
    speedups = results.speedups(data)
    speedups = speedups[speedups.clock == clock]
    _, run = report.newest_run(device)
    console.rule(f"[bold]{run['machine_info']['device_name']}")
    if run["machine_info"]["device"] == "cpu":
        console.print(report.CPU_NOTE.replace("**", "").replace("`", ""), style="italic")
    copy = run["copy_bytes_per_s"]
    speed = f", copy {copy / 1e9:.4g} GB/s" if copy else ""
    console.print(f"{plot.CLOCK_TEXT[clock]}, medians, grid {run['grid']}{speed}; {device}/\n")
    own = right[~right.op.isin(DROP_INS)]
    for dtype in sorted(own.dtype.unique(), reverse=True):
        for direction in DIRECTIONS:
            what = f"{direction}, {dtype}"
            cells = own[(own.clock == clock) & (own.direction == direction) & (own.dtype == dtype)]
            if cells.empty:
                continue
            title = f"speed-up of fused_elbo: {what}"
            console.print(speedup_table(speedups, direction, dtype, title))
            cells = cells[cells.op.isin(OPERATIONS)]
            if cells.empty:
                continue
            size = cells.loc[(cells.batch * cells.latent).idxmax()]
            title = f"time of a call: {what}, {size.batch} x {size.latent}"
            console.print(time_table(cells, title))
    samples_report.show(device, right, clock, console)
    drop_ins_report.show(right, speedups, clock, console)
    quality_report.show(device, console)
    for entry in data[data.status != "right"].itertuples():
        where = f"{entry.op} {shape(entry)} {entry.dtype} {entry.direction}"
        console.print(
            f"[bold red]{entry.status}[/], not timed: {entry.provider} {where}: {entry.reason}"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="folders of results/; or all")
    parser.add_argument("--results", default="results", metavar="DIR")
    parser.add_argument("--latest", action="store_true", help="the device with the newest run")
    for device in plot.chosen(parser.parse_args(arguments)):
        show(device, rich.get_console())


if __name__ == "__main__":
    main()
