"""``python -m bench.single_cell``: models of scvi-tools before and after the lines that switch them
over.

It times steps and whole ``model.train()`` of SCVI, SCANVI, TOTALVI and PEAKVI on simulated cells,
in turns, and compares loss curves with those of float64. It writes ``single_cell.json`` into the
device's folder below ``--results``; ``make pages`` draws the chart and fills docs/drop-ins.md from
it. scvi-tools is not installed with the benchmarks:

    python3 -m venv ENV
    ENV/bin/pip install -e '.[single-cell]'
    ENV/bin/python -m bench.single_cell
"""

import argparse
import json
import logging
from pathlib import Path

import rich

from ..harness import machine, quiet, runs
from ..reporting import tables as reporting
from . import measure, models, tables
from .results import FILE


def parsed(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m bench.single_cell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", type=int, default=2560)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10, help="of a model.train()")
    parser.add_argument("--rounds", type=int, default=40, help="turns of steps that are timed")
    parser.add_argument("--in-a-row", type=int, default=5, metavar="N", help="steps of a turn")
    parser.add_argument("--trainings", type=int, default=3, help="model.train() that are timed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.trainings) < 2:
        parser.error("--rounds and --trainings must be at least 2")
    if options.in_a_row < 1:
        parser.error("--in-a-row must be at least 1")
    return parser, options


def main(arguments=None):
    parser, options = parsed(arguments)
    scvi, module = models.load()
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet.keep_freed_memory()
    cells = models.simulated(options.cells, options.genes, options.seed)
    programs = models.Models(scvi, module, cells)
    if unknown := set(options.models or ()) - set(programs.by_name):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {list(programs.by_name)}")
    info, (commit, dirty) = machine.describe("cpu"), machine.commit()
    console, found = rich.get_console(), {}
    settings = {
        key: value for key, value in vars(options).items() if key not in ("results", "models")
    }
    record = {
        "machine_info": info, "commit_info": {"id": commit, "dirty": dirty},
        "scvi_tools": scvi.__version__, "settings": settings,
        "zeros": 1 - cells.X.nnz / (options.cells * options.genes), "models": found,
    }  # fmt: skip
    path = options.results / runs.slug(info) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.models or programs.by_name:
        console.print(name)
        try:
            found[name] = measure.measured(programs, name, options)
        except Exception:  # scvi-tools' own, of one model: the others are measured all the same
            console.print_exception(max_frames=4)
            failed.append(name)
            continue
        text = json.dumps(runs.shorten(record), indent=1)
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
    if found:
        console.print(reporting.terminal(tables.compared(record)))
        console.print(f"numbers in {path}", soft_wrap=True)
    if failed:
        raise SystemExit(f"not measured, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main()
