"""The pytest plugin behind ``--benchmark``: what is skipped, what ends a run, and its JSON.

``conftest.py`` registers it; pytest alone, without the option, never imports it.
"""

import os
import signal
import time

import pytest

from . import cases, clock, machine, quiet, runs
from .machine import DEVICE
from .progress import Progress
from .providers import PROVIDERS

NAME = "fused-elbo-benchmarks"


class Session:
    """State and hooks of one run; ``write_csv(folder)`` is called on what it wrote."""

    def __init__(self, config, write_csv):
        self.config, self.write_csv = config, write_csv
        if DEVICE == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
            raise pytest.UsageError("TRITON_INTERPRET=1: the interpreter is not to be timed")
        # Every compilation of torch warns of it.
        config.addinivalue_line("filterwarnings", "ignore:.*torch.jit.script_method")
        config.pluginmanager.register(Progress(config))
        self.grid = cases.GRIDS[DEVICE, config.getoption("grid")]
        self.folder = config.getoption("results")
        self.budget = config.getoption("budget")
        self.journal = self.written = None
        self.timed, self.not_timed = [], []
        self.unspent = 0  # cases that the budget left no time for
        self.load = []  # a GPU's clocks at work, after the first case and after the last
        self.ended = None  # {"why", "case"} of a run that ended before its last case
        self.signal = None
        self.start = time.monotonic()
        # Taken before we begin, it is the load of others. Above a fraction of 1 doubt the times.
        self.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        quiet.keep_freed_memory()
        # A smoke run only shows that everything runs: it waits for nobody.
        self.quiet = quiet.Quiet(0.0 if config.getoption("grid") == "smoke" else 60.0)
        self.described = machine.describe(DEVICE)  # at once: a dead device cannot be asked
        self._ceiling = None
        self._measured = None

    # For the tests that time something.

    @pytest.fixture
    def run(self, request):
        """This state, for a test that times something; ``identity`` is the id of its case."""
        self.identity = request.node.callspec.id
        return self

    def ceiling(self):
        """The speed of a large copy, measured once a run."""
        if self._ceiling is None:
            self._ceiling = clock.copy_ceiling(DEVICE)
            self.note(copy_bytes_per_s=self._ceiling)
            self.look_at_clocks()
        return self._ceiling

    def look_at_clocks(self):
        if DEVICE == "cuda":
            self.load.append(clock.at_work(machine.load))
            self.note(load=self.load)

    def skip_if_spent(self):
        """Skip what the time budget leaves no room for, or what was resumed past."""
        if self.identity in self.measured():
            pytest.skip("measured at this commit already")
        if self.budget and time.monotonic() - self.start > self.budget:
            self.unspent += 1
            pytest.skip(f"the budget of {self.budget} s is spent")

    def measured(self):
        """The ids that --resume's folder has at this commit."""
        if self._measured is None:
            folder = self.config.getoption("resume")
            self._measured = runs.measured(folder, machine.commit()[0]) if folder else set()
        return self._measured

    def leave_out(self, status, reason, **info):
        """Note a case that gets no time, with what is known of it."""
        row = {**info, "id": self.identity, "status": status, "reason": reason}
        self.not_timed.append(row)
        self.note(not_timed=row)

    def note(self, **line):
        if self.journal:
            self.journal.add(**line)

    # From the first case to the last, or to what ends the run.

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        """Tuned compilations take most of a GPU's time: they are left to the full grid."""
        if self.config.getoption("grid") != "default":
            return
        tuned = [item for item in items if is_tuned(item.callspec.params)]
        self.config.hook.pytest_deselected(items=tuned)
        items[:] = [item for item in items if item not in tuned]

    def pytest_collection_finish(self, session):
        self.start = time.monotonic()
        signal.signal(signal.SIGTERM, self.terminate)
        if self.folder and session.items and not self.config.getoption("collectonly"):
            self.journal = runs.Journal(self.folder, self.output())

    def terminate(self, *_):
        """SIGTERM ends the run as Ctrl-C does: with what there is."""
        self.signal = "SIGTERM"
        raise KeyboardInterrupt

    def pytest_runtest_logstart(self, nodeid):
        self.running = nodeid.partition("[")[2].rstrip("]")
        self.note(started=self.running)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.when == "call" and report.passed:
            self.keep(item)
        elif report.failed and not isinstance(call.excinfo.value, pytest.fail.Exception):
            self.identity = item.callspec.id
            case = item.callspec.params.get("case")
            reason = runs.reason(call.excinfo.value)
            self.leave_out("failed", reason, **(case._asdict() if case else {}))
        if DEVICE == "cuda" and not report.passed and not clock.device_lives():
            self.ended = {"why": "the CUDA context is dead", "case": self.running}
            item.session.shouldstop = f"the CUDA context died in {self.running}"
        return report

    def keep(self, item):
        """Put the times of a case on disk."""
        benchmarks = self.config._benchmarksession.benchmarks
        if benchmarks and benchmarks[-1] and benchmarks[-1].fullname == item.nodeid:
            self.timed.append(benchmarks[-1])
            self.note(benchmark=runs.compact(benchmarks[-1].as_dict(include_data=False)))

    def pytest_keyboard_interrupt(self):
        self.ended = self.ended or {"why": self.signal or "interrupted", "case": self.running}

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.timed and not self.ended:
            self.look_at_clocks()
        if self.journal:
            self.written = self.journal.finish(self.output())
        if self.written:
            self.write_csv(self.written.parent)

    def pytest_terminal_summary(self, terminalreporter):
        line = terminalreporter.write_line
        bad = [row for row in self.not_timed if row["status"] != "left out"]
        if bad:
            terminalreporter.section("wrong or failed providers: not timed", yellow=True)
        for row in bad:
            line(f"{row['status'].upper()} {row['id']}: {row['reason']}")
        for found in filter(machine.held_back, self.load):
            line(f"the GPU's clocks were held back ({found['reasons']}): doubt the times", red=True)
        if self.unspent:
            line(f"the budget of {self.budget:g} s was spent: {self.unspent} cases are left")
        if self.ended:
            line(f"ended early, in {self.ended['case']}: {self.ended['why']}")
        if self.written:
            line(f"\n{len(self.timed)} cases are in {self.written}")
            if self.ended or self.unspent:
                line(f"go on with --resume={self.folder}")

    # The JSON.

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info):
        machine.scrub(machine_info)
        machine_info.update(self.described)

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
        output_json["load"] = self.load
        output_json["ended"] = self.ended
        output_json["not_timed"] = self.not_timed

    def output(self):
        """The same JSON as pytest-benchmark's own, without the times of every single round."""
        config, hook = self.config, self.config.hook
        commit_info = hook.pytest_benchmark_generate_commit_info(config=config)
        hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit_info)
        output = hook.pytest_benchmark_generate_json(
            config=config,
            benchmarks=self.timed,
            include_data=False,
            machine_info=config._benchmarksession.get_machine_info(),
            commit_info=commit_info,
        )
        hook.pytest_benchmark_update_json(config=config, benchmarks=self.timed, output_json=output)
        return output


def is_tuned(params):
    """Whether a test's parameters name a tuned provider."""
    name = params["case"].provider if "case" in params else params.get("provider")
    return name in PROVIDERS and PROVIDERS[name].tuned


def command(config):
    """How the run was started, without paths."""
    parts = ["pytest", "--benchmark", "--grid", config.getoption("grid")]
    if config.getoption("keyword"):
        parts += ["-k", repr(config.getoption("keyword"))]
    if config.getoption("budget"):
        parts += ["--budget", f"{config.getoption('budget'):g}"]
    return " ".join(parts)
