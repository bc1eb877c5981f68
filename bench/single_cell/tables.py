"""Models of scvi-tools in tables: docs/drop-ins.md, a device's README, the terminal. No torch."""

from ..reporting.formats import DASH, ratio, seconds, size
from ..reporting.tables import Table, tinted
from . import results

COLUMNS = [
    "model", "threads", "of", "before", "after", "speed-up", ("quartiles", None),
    ("peak memory", "peak"), ("from float64", None),
]  # fmt: skip
WORDS = {"step": "a step", "train": "`model.train()`"}


def intro(record):
    settings, info = record["settings"], record["machine_info"]
    return (
        f"Models of scvi-tools {record['scvi_tools']} with its defaults, before and after, on "
        f"{settings['cells']:,} simulated cells of {settings['genes']:,} genes "
        f"({100 * record['zeros']:.0f} % of the counts are 0), in whole minibatches of "
        f"{settings['batch']}: a training step, and a whole `model.train()` of "
        f"{settings['epochs']} epochs with Lightning and the data loader. Medians and quartiles of "
        f"{settings['rounds']} turns of {settings['in_a_row']} steps and of "
        f"{settings['trainings']} trainings, which alternate; "
        f"torch {info['torch']}. The last column is how far the curves of loss are from one in "
        "float64, relative, in the epoch in which they are farthest."
    )


def compared(record, title=""):
    table = []
    for name, threads, what, figures in results.rows(record):
        off = record["models"][name]["curves"]["off"]
        low, high = figures["quartiles"]
        memory = DASH
        if what == "step":
            memory = f"{size(figures['before_bytes'])} → {size(figures['after_bytes'])}"
        table.append([
            name, threads, WORDS[what], seconds(figures["before_s"]), seconds(figures["after_s"]),
            tinted(figures["speed_up"], ratio(figures["speed_up"])),
            f"{ratio(low)} to {ratio(high)}", memory,
            f"{off['before']:.1e} → {off['after']:.1e}" if what == "train" else DASH,
        ])  # fmt: skip
    return Table(COLUMNS, table, title)


def sections(device):
    """Parts of a device's README; none where nothing of it was measured."""
    record = results.read(device)
    return ["## Models of scvi-tools", intro(record), compared(record)] if record else []


def project(devices, link):
    """For docs/drop-ins.md: each device's."""
    parts = []
    for device in devices:
        if record := results.read(device):
            parts += [f"{link(device)}. {intro(record)}", compared(record)]
            parts.append("!" + link(device, "plots/single-cell.png", "speed-ups and curves"))
    return parts


def terminal(device):
    if record := results.read(device):
        yield compared(record, f"models of scvi-tools {record['scvi_tools']}")
