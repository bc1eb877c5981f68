"""The data of the charts and tables of counts. No torch."""


def of_counts(table):
    return table[table.suite == "counts"]


def measured(device):
    """The times by the clock of the charts."""
    table = of_counts(device.right)
    return table[table.clock == device.clock]


def cells(device):
    """The speed-ups, in the order of the tables."""
    return of_counts(device.speedups).sort_values(["order", "batch", "latent"])
