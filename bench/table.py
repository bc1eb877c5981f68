"""``python -m bench.table [DEVICE ...]``: the results as tables in the terminal."""

import rich

from .plot import chosen, parser_of
from .reporting import on_cpu, overview, tables
from .reporting.speedups import not_timed_in_short
from .suites import OVERVIEW, terminal


def show(device, console):
    """In words what came out, then all tables of a device."""
    run = device.newest_run
    console.rule(f"[bold]{device.info['device_name']}")
    if words := overview.in_words(device, OVERVIEW):
        console.print(words, style="bold", highlight=False)
    if ended := run.get("ended"):
        console.print(
            f"The newest run ended early, in {ended['case']}: {ended['why']}.", style="red"
        )
    if device.on_cpu:
        notes = " ".join(on_cpu.notes(device.info, device.infos(device.right)))
        console.print(notes.replace("**", "").replace("`", ""), style="italic")
    copy = run["copy_bytes_per_s"]
    speed = f", copy {copy / 1e9:.4g} GB/s" if copy else ""
    console.print(f"Medians, grid {run['grid']}{speed}; {device.folder}/\n")
    for table in terminal(device):
        console.print(tables.terminal(table))
    for line in not_timed_in_short(run):
        console.print(line, style="" if line.startswith("left out") else "red", highlight=False)


def main(arguments=None):
    for device in chosen(parser_of("table", __doc__).parse_args(arguments)):
        show(device, rich.get_console())


if __name__ == "__main__":
    main()
