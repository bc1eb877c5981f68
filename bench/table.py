"""``python -m bench.table [DEVICE ...]``: the results as tables in the terminal."""

import rich

from .plot import parsed
from .reporting import on_cpu, tables
from .reporting.canvas import CLOCK_TEXT
from .reporting.speedups import short_shape
from .suites import terminal


def show(device, console):
    """All tables of a device."""
    run = device.newest_run
    console.rule(f"[bold]{device.info['device_name']}")
    if device.on_cpu:
        notes = " ".join(on_cpu.notes(device.info, device.infos(device.right)))
        console.print(notes.replace("**", "").replace("`", ""), style="italic")
    copy = run["copy_bytes_per_s"]
    speed = f", copy {copy / 1e9:.4g} GB/s" if copy else ""
    clock = CLOCK_TEXT[device.clock]
    console.print(f"{clock}, medians, grid {run['grid']}{speed}; {device.folder}/\n")
    for table in terminal(device):
        console.print(tables.terminal(table))
    for entry in device.table[device.table.status != "right"].itertuples():
        where = f"{entry.op} {short_shape(entry)} {entry.dtype} {entry.direction}"
        console.print(
            f"[bold red]{entry.status}[/], not timed: {entry.provider} {where}: {entry.reason}"
        )


def main(arguments=None):
    for device in parsed("table", __doc__, arguments)[1]:
        show(device, rich.get_console())


if __name__ == "__main__":
    main()
