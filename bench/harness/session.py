"""The pytest plugin behind ``--benchmark``: progress, time budget, and the results' JSON.

``conftest.py`` registers it; pytest alone, without the option, never imports it.
"""

import os
import shutil
import time

import pytest

from . import cases, clock, machine, quiet, runs
from .machine import DEVICE

NAME = "fused-elbo-benchmarks"
SECONDS_BETWEEN_LINES = 15


class Session:
    """State and hooks of one run; ``write_csv(folder)`` is called on what it wrote."""

    def __init__(self, config, write_csv):
        self.config, self.write_csv = config, write_csv
        if DEVICE == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
            raise pytest.UsageError("TRITON_INTERPRET=1: the interpreter is not to be timed")
        # Of torch, in every compilation.
        config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.script_method")
        self.grid = cases.GRIDS[DEVICE, config.getoption("grid")]
        self.folder = config.getoption("results")
        self.budget = config.getoption("budget")
        self.not_timed = []
        self.written = None
        self.start = time.monotonic()
        self.started = 0
        self.total = 0
        self.last_line = 0.0
        # Of others, for we have not begun: above a fraction of one, times are in doubt.
        self.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        quiet.keep_freed_memory()
        # A smoke run only shows that everything runs: it waits for nobody.
        self.quiet = quiet.Quiet(0.0 if config.getoption("grid") == "smoke" else 60.0)
        self._ceiling = None
        self._measured = None

    @pytest.fixture
    def run(self, request):
        """This state, for a test that times something; ``identity`` is the id of its case."""
        self.identity = request.node.callspec.id
        return self

    def ceiling(self):
        """The speed of a large copy, measured once a run."""
        if self._ceiling is None:
            self._ceiling = clock.copy_ceiling(DEVICE)
        return self._ceiling

    def skip_if_spent(self):
        """Skip what the time budget leaves no room for, or what was resumed past."""
        if self.budget and time.monotonic() - self.start > self.budget:
            pytest.skip(f"the budget of {self.budget} s is spent")
        if self.identity in self.measured():
            pytest.skip("measured at this commit already")

    def measured(self):
        """The ids that --resume's folder has at this commit."""
        if self._measured is None:
            folder = self.config.getoption("resume")
            self._measured = runs.measured(folder, machine.commit()[0]) if folder else set()
        return self._measured

    # Progress: one line that is rewritten on a terminal, now and then a line elsewhere.

    def pytest_collection_finish(self, session):
        self.total = len(session.items)
        self.start = time.monotonic()
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self.config.option.verbose == 0:
            reporter.showfspath = False

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid):
        self.started += 1
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or self.config.option.verbose != 0:
            return
        text = progress_line(self.started, self.total, time.monotonic() - self.start, nodeid)
        if reporter.isatty():
            width = shutil.get_terminal_size().columns
            reporter.rewrite(text[: width - 1], erase=True)
        elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            reporter.write_line(text)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        """No dots between the lines of progress: a letter for what is not as it should be."""
        if self.config.option.verbose == 0 and report.when == "call" and report.passed:
            return "passed", "", "PASSED"
        if self.config.option.verbose == 0 and report.skipped:
            return "skipped", "", "SKIPPED"
        return None

    def pytest_terminal_summary(self, terminalreporter):
        if self.written:
            terminalreporter.write_line(f"\nwrote {self.written}")
        if not self.not_timed:
            return
        terminalreporter.section("wrong or failed providers: not timed", yellow=True)
        for entry in self.not_timed:
            line = f"{entry['status'].upper()} {entry['id']}: {entry['reason']}"
            terminalreporter.write_line(line)

    # What the JSON says.

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info):
        machine.scrub(machine_info)
        machine_info.update(machine.describe(DEVICE))

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_commit_info(self, commit_info):
        identity, dirty = machine.commit()
        commit_info.clear()
        commit_info.update(id=identity, dirty=dirty, project="fused_elbo")

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json):
        output_json["grid"] = self.config.getoption("grid")
        output_json["command"] = command(self.config)
        output_json["load_average_before"] = self.load_average
        output_json["copy_bytes_per_s"] = self._ceiling
        output_json["not_timed"] = self.not_timed

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self):
        benchmarks = self.config._benchmarksession
        timed = [b for b in benchmarks.benchmarks if b]
        if self.folder and (timed or self.not_timed):
            self.written = runs.write(self.folder, full_json(self.config, benchmarks, timed))
            self.write_csv(self.written.parent)


def full_json(config, benchmarks, timed):
    """The same JSON as pytest-benchmark's own, without the times of every single round."""
    hook = config.hook
    commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
    output = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=timed,
        include_data=False,
        machine_info=benchmarks.get_machine_info(),
        commit_info=commit_info,
    )
    hook.pytest_benchmark_update_json(config=config, benchmarks=timed, output_json=output)
    return output


def command(config):
    """How the run was started, without paths."""
    parts = ["pytest", "--benchmark", "--grid", config.getoption("grid")]
    if config.getoption("keyword"):
        parts += ["-k", repr(config.getoption("keyword"))]
    if config.getoption("budget"):
        parts += ["--budget", f"{config.getoption('budget'):g}"]
    return " ".join(parts)


def progress_line(number, total, seconds, nodeid):
    """'[ 12/648] 1:05 gaussian_kl-eager-64-16-float32-forward'.

    >>> progress_line(12, 648, 65.2, "bench/t.py::test_operation[a-b]")
    '[ 12/648] 1:05 a-b'
    """
    name = nodeid.partition("[")[2].rstrip("]") or nodeid
    minutes, rest = divmod(int(seconds), 60)
    return f"[{number:{len(str(total))}}/{total}] {minutes}:{rest:02} {name}"
