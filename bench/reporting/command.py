"""The command line that ``bench.plot`` and ``bench.table`` share."""

import argparse
from pathlib import Path

from ..harness import runs
from .results import Device


def parsed(name, description, arguments):
    """(folder of all results, the Devices that were asked for); exits where there are none."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    parser.add_argument("devices", nargs="*", metavar="DEVICE", help="folders of results/; or all")
    parser.add_argument("--results", default="results", metavar="DIR", type=Path)
    parser.add_argument("--latest", action="store_true", help="the device with the newest run")
    options = parser.parse_args(arguments)
    return options.results, [Device(folder) for folder in chosen(options)]


def chosen(options):
    found = runs.devices(options.results)
    if options.devices:
        missing = [d for d in options.devices if options.results / d not in found]
        if missing:
            raise SystemExit(f"no runs of {', '.join(missing)} below {options.results}/")
        return [options.results / name for name in options.devices]
    if not found:
        raise SystemExit(f"no runs below {options.results}/: run `make bench` first")
    return [runs.latest(options.results)] if options.latest else found
