"""``results/<device>/single_cell.json``, as ``python -m bench.single_cell`` writes it. No torch."""

import json

FILE = "single_cell.json"


def read(device):
    """The record of a device, or None."""
    path = device.folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def rows(record):
    """(model, threads, what of, its figures): a step and a whole training."""
    for name, model in record["models"].items():
        for threads, of in model["threads"].items():
            for what, figures in of.items():
                yield name, int(threads), what, figures
