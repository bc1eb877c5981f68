"""The suites, in the order of runs and of pages: the one list that commands loop over. No torch."""

from collections.abc import Callable
from typing import NamedTuple

from .drop_ins import charts as drop_in_charts
from .drop_ins import tables as drop_ins
from .mixtures import charts as mixture_charts
from .mixtures import tables as mixtures
from .operations import charts as operation_charts
from .operations import tables as operations
from .quality import charts as quality_charts
from .quality import results as quality_results
from .quality import tables as quality
from .reporting import results
from .samples import charts as sample_charts
from .samples import tables as samples


class Suite(NamedTuple):
    """A suite as reports see it; what it times is in the test module of its folder."""

    name: str  # of its folder, and what its rows in the JSON say
    charts: Callable  # of a Device: {file name: figure}
    terminal: Callable  # of a Device: tables
    sections: Callable = lambda device: ()  # of a Device: parts of its README
    pages: dict = {}  # noqa: RUF012 - {marker: function of all Devices and of link: parts}
    files: dict = {}  # noqa: RUF012 - {CSV: function of a Device: a data frame, or None}


SUITES = (
    Suite(
        "operations",
        operation_charts.charts,
        operations.terminal,
        pages={"results": operations.project},
        files={"summary.csv": results.summary},  # of all operations
    ),
    Suite("samples", sample_charts.charts, samples.terminal, samples.sections),
    Suite("mixtures", mixture_charts.charts, mixtures.terminal, mixtures.sections),
    Suite(
        "drop_ins",
        drop_in_charts.charts,
        drop_ins.terminal,
        drop_ins.sections,
        pages={"drop-ins": drop_ins.project},
    ),
    Suite(
        "quality",
        quality_charts.charts,
        quality.terminal,
        quality.sections,
        pages={"quality": quality.project},
        files={"quality.csv": quality_results.measured},
    ),
)
PAGES = {marker: section for suite in SUITES for marker, section in suite.pages.items()}


def write_csv(folder):
    """The tidy tables of a device's folder, from the JSON alone."""
    device = results.Device(folder)
    for suite in SUITES:
        for name, rows in suite.files.items():
            if (table := rows(device)) is not None:
                path = device.folder / name
                table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
