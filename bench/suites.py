"""The suites, in the order of runs and of pages: the one list that commands loop over. No torch."""

from collections.abc import Callable
from typing import NamedTuple

from .drop_ins import charts as drop_in_charts
from .drop_ins import tables as drop_in_tables
from .operations import charts as operation_charts
from .operations import tables as operation_tables
from .quality import charts as quality_charts
from .quality import results as quality_results
from .quality import tables as quality_tables
from .reporting import results
from .samples import charts as sample_charts
from .samples import tables as sample_tables


class Suite(NamedTuple):
    """A suite as reports see it; what it times is in the test module of its folder."""

    name: str  # of its folder, and what its rows in the JSON say
    charts: Callable  # of a Device: {file name: figure}
    terminal: Callable  # of a Device: its tables
    sections: Callable  # of a Device: parts of its README
    marker: str | None = None  # in the project's pages
    project: Callable | None = None  # of all Devices and of link: parts between the markers
    csv: str | None = None  # a file in the device's folder
    rows: Callable | None = None  # of a Device: what is in it, a data frame, or None for no file


SUITES = (
    Suite(
        "operations",
        operation_charts.charts,
        operation_tables.terminal,
        operation_tables.sections,
        "results",
        operation_tables.project,
        "summary.csv",  # with the operations of all suites
        results.summary,
    ),
    Suite("samples", sample_charts.charts, sample_tables.terminal, sample_tables.sections),
    Suite(
        "drop_ins",
        drop_in_charts.charts,
        drop_in_tables.terminal,
        drop_in_tables.sections,
        "drop-ins",
        drop_in_tables.project,
    ),
    Suite(
        "quality",
        quality_charts.charts,
        quality_tables.terminal,
        quality_tables.sections,
        "quality",
        quality_tables.project,
        "quality.csv",
        quality_results.measured,
    ),
)


def write_csv(folder):
    """The tidy tables of a device's folder, from the JSON alone."""
    device = results.Device(folder)
    for suite in SUITES:
        table = suite.rows and suite.rows(device)
        if table is not None:
            path = device.folder / suite.csv
            table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
