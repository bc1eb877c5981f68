"""A run's progress: how many cases there are and about how long they take, then a line each."""

import shutil
import time

import pytest

from .machine import DEVICE, why_no_gpu
from .providers import OURS, PROVIDERS

SECONDS_BETWEEN_LINES = 15
# Seconds that a case takes, check included, and a compilation: on a CPU as measured, on a GPU as
# assumed. Tuned compilations take TUNED times as long. KERNEL is for kernels not yet on disk.
CASE = {"cpu": 0.2, "cuda": 0.4}
COMPILATION = {"cpu": 2.5, "cuda": 2.5}
KERNEL = {"cpu": 5.0, "cuda": 0.0}
TUNED = 4


class Progress:
    """A plugin of pytest. On a terminal one line is rewritten; elsewhere there is one now and then.

    A verbose pytest shows what it always shows.
    """

    def __init__(self, config):
        self.config = config
        self.start = time.monotonic()
        self.started = self.total = 0
        self.last_line = 0.0

    @property
    def reporter(self):
        """The terminal, or None where it is not ours to write to."""
        if self.config.option.verbose != 0:
            return None
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_collection_finish(self, session):
        self.total = len(session.items)
        self.start = time.monotonic()
        if self.reporter is not None:
            self.reporter.showfspath = False
            if why := why_no_gpu():
                self.reporter.write_line(why, red=True)
            cases = [item.callspec.params.get("case") for item in session.items]
            self.reporter.write_line(announcement(cases, DEVICE, self.config.getoption("budget")))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid):
        self.started += 1
        if self.reporter is None:
            return
        text = progress_line(self.started, self.total, time.monotonic() - self.start, nodeid)
        if self.reporter.isatty():
            width = shutil.get_terminal_size().columns
            self.reporter.rewrite(text[: width - 1], erase=True)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            self.reporter.write_line(text)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        """No dots between the lines of progress: a letter for what is not as it should be."""
        if self.config.option.verbose == 0 and report.when == "call" and report.passed:
            return "passed", "", "PASSED"
        if self.config.option.verbose == 0 and report.skipped:
            return "skipped", "", "SKIPPED"
        return None


def announcement(cases, device, budget=None):
    """The first line of a run; ``cases`` has None for what is no Case."""
    text = f"{len(cases)} cases, about {duration(expected_seconds(cases, device))} at first"
    if budget:
        text += f"; what is left after {duration(budget)} is skipped"
    return f"{text}. Each is on disk when it is done, if --results says where."


def expected_seconds(cases, device):
    """On a GPU each case compiles anew, on a CPU each operation, direction and dtype does."""
    cases, total = [case for case in cases if case is not None], len(cases)
    compiled = [case for case in cases if PROVIDERS[case.provider].compile is not None]
    kernels = {(case.op, case.dtype) for case in cases if case.provider in OURS}
    if device == "cpu":
        compiled = {(c.op, c.provider, c.dtype, c.direction): c for c in compiled}.values()
    turns = sum(TUNED if PROVIDERS[c.provider].tuned else 1 for c in compiled)
    return total * CASE[device] + turns * COMPILATION[device] + len(kernels) * KERNEL[device]


def duration(seconds):
    """
    >>> duration(42), duration(250), duration(7000)
    ('42 s', '4 min', '1 h 57 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress_line(number, total, seconds, nodeid):
    """'[ 12/648] 1:05 gaussian_kl-eager-64-16-float32-forward'.

    >>> progress_line(12, 648, 65.2, "bench/t.py::test_operation[a-b]")
    '[ 12/648] 1:05 a-b'
    """
    name = nodeid.partition("[")[2].rstrip("]") or nodeid
    minutes, rest = divmod(int(seconds), 60)
    return f"[{number:{len(str(total))}}/{total}] {minutes}:{rest:02} {name}"
