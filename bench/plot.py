"""``python -m bench.plot [DEVICE ...]``: redraw every chart and table from the committed JSON.

Needs no torch. The same JSON gives the same bytes: figures carry no date and no version. Each
device's folder is written, and with ``--pages`` the figures in README.md and docs/ as well.
"""

import argparse
from pathlib import Path

from matplotlib import rc_context

from .harness import runs
from .reporting import canvas, pages, readme
from .reporting.results import Device
from .suites import PAGES, SUITES, charts, write_csv

ROOT = Path(__file__).resolve().parents[1]


def draw(device):
    """All charts of a device; returns their paths."""
    folder = device.folder / "plots"
    folder.mkdir(exist_ok=True)
    with rc_context(canvas.STYLE):
        figures = charts(device)
        for path in folder.glob("*.png"):
            if path.stem not in figures:
                path.unlink()  # a chart of data that is no longer there
        return [canvas.save(figure, folder / f"{name}.png") for name, figure in figures.items()]


def parser_of(name, description):
    """The options of the commands that read results."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="folders of results/; or all")
    parser.add_argument("--results", default="results", metavar="DIR", type=Path)
    parser.add_argument("--latest", action="store_true", help="the device with the newest run")
    return parser


def chosen(options):
    """The Devices that were asked for. Exits where there are none."""
    return [Device(folder) for folder in folders(options)]


def folders(options):
    found = runs.devices(options.results)
    if options.devices:
        missing = [d for d in options.devices if options.results / d not in found]
        if missing:
            raise SystemExit(f"no runs of {', '.join(missing)} below {options.results}/")
        return [options.results / name for name in options.devices]
    if not found:
        raise SystemExit(f"no runs below {options.results}/: run `make bench` first")
    return [runs.latest(options.results)] if options.latest else found


def main(arguments=None):
    parser = parser_of("plot", __doc__)
    parser.add_argument("--pages", action="store_true", help="write into README.md and docs/ too")
    options = parser.parse_args(arguments)
    for device in chosen(options):
        drawn = draw(device)
        write_csv(device.folder)
        readme.write(device, drawn, SUITES)
        print(f"{device.folder}: {len(drawn)} charts, summary.csv, README.md")
    if options.pages:
        pages.fill(ROOT, options.results, PAGES)


if __name__ == "__main__":
    main()
