"""The one list of suites, in the order of runs and of pages. No torch."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from .counts import charts as count_charts
from .counts import tables as counts
from .drop_ins import charts as drop_in_charts
from .drop_ins import tables as drop_ins
from .mixtures import charts as mixture_charts
from .mixtures import tables as mixtures
from .operations import charts as operation_charts
from .operations import tables as operations
from .quality import charts as quality_charts
from .quality import results as quality_results
from .quality import tables as quality
from .reporting import overview, results
from .samples import charts as sample_charts
from .samples import tables as samples
from .single_cell import charts as single_cell_charts
from .single_cell import tables as single_cell


class Suite(NamedTuple):
    """A suite as reports and sessions see it. Its test module says what it times."""

    name: str  # of its folder; its rows in the JSON say it too. single_cell has a command instead
    charts: Callable  # of a Device: {file name: figure}
    terminal: Callable  # of a Device: tables
    sections: Callable = lambda device: ()  # of a Device: parts of its README
    pages: dict = {}  # noqa: RUF012 - {marker: function of all Devices and of link: parts}
    files: dict = {}  # noqa: RUF012 - {CSV: function of a Device: a data frame, or None}
    in_overview: bool = False  # its speed-ups are over baselines; the drop-ins' are over originals


SUITES = (
    Suite(
        "operations",
        operation_charts.charts,
        operations.terminal,
        files={"summary.csv": results.summary},  # of all operations
        in_overview=True,
    ),
    Suite("samples", sample_charts.charts, samples.terminal, samples.sections, in_overview=True),
    Suite(
        "mixtures", mixture_charts.charts, mixtures.terminal, mixtures.sections, in_overview=True
    ),
    Suite(
        "drop_ins",
        drop_in_charts.charts,
        drop_ins.terminal,
        drop_ins.sections,
        pages={"drop-ins": drop_ins.project},
    ),
    # After the drop-ins: it imports Pyro, which changes what others run under.
    Suite("counts", count_charts.charts, counts.terminal, counts.sections, in_overview=True),
    Suite(
        "quality",
        quality_charts.charts,
        quality.terminal,
        quality.sections,
        pages={"quality": quality.project},
        files={"quality.csv": quality_results.measured},
    ),
    Suite(
        "single_cell",
        single_cell_charts.charts,
        single_cell.terminal,
        single_cell.sections,
        pages={"single-cell": single_cell.project},
    ),
)
OVERVIEW = [suite.name for suite in SUITES if suite.in_overview]
PAGES = {
    "measured": overview.measured,
    "overview": overview.chart,
    "results": functools.partial(overview.project, suites=OVERVIEW),
    **{marker: section for suite in SUITES for marker, section in suite.pages.items()},
}


def charts(device):
    """{file name: figure}, the overview first."""
    found = overview.charts(device, OVERVIEW)
    for suite in SUITES:
        found |= suite.charts(device)
    return found


def terminal(device):
    """All tables of a device, the overview's first."""
    yield from overview.terminal(device, OVERVIEW)
    for suite in SUITES:
        yield from suite.terminal(device)


def write_csv(folder):
    """The tidy tables of a device's folder, from the JSON alone."""
    device = results.Device(folder)
    for suite in SUITES:
        for name, rows in suite.files.items():
            if (table := rows(device)) is not None:
                path = device.folder / name
                table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
