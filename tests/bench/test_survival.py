"""A run survives: what was measured is on disk whatever ends it, and is drawn all the same."""

import json
import os
import signal
import subprocess

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.harness import progress, runs
from bench.harness.cases import GRIDS, Case
from bench.harness.session import is_tuned
from bench.operations import cases
from bench.operations.entries import ENTRIES
from bench.reporting.results import Device
from helpers import fake_runs
from helpers.fake_runs import ROOT

FIRST, SECOND, THIRD = (
    f"gaussian_kl-{provider}-64-32-float32-forward"
    for provider in ("eager", "distributions", "fused_elbo")
)
# Replaces the second provider of three; ``how`` is a line of its body.
CARELESS = """
import os, signal
from bench.harness import clock, session
from bench.operations.entries import ENTRIES
providers = ENTRIES["gaussian_kl"].providers
right = providers["distributions"]
def careless(mu, logvar):
    {how}
    return right(mu, logvar)
providers["distributions"] = careless
"""
DEAD = (
    "session.DEVICE, clock.device_lives = 'cuda', lambda: False; "
    "raise RuntimeError('CUDA error: an illegal memory access was encountered')"
)


def run(tmp_path, how, *options):
    """Three cases, whose second does something; (the process, the run's path, the run)."""
    (tmp_path / "careless.py").write_text(CARELESS.format(how=how))
    selected = "gaussian_kl and 64-32 and not backward and not compile"
    done = fake_runs.pytest(
        "--benchmark", "-p", "careless", "--grid", "smoke", f"--results={tmp_path}/out",
        "-k", selected, *options, path=f"{tmp_path}{os.pathsep}{ROOT}",
    )  # fmt: skip
    (path,) = (tmp_path / "out").glob("*/*-*.json*")
    return done, path, runs.load(path)


def timed(output):
    return [row["extra_info"]["id"] for row in output["benchmarks"]]


def test_sigterm_ends_a_run_with_what_there_is(tmp_path):
    done, path, output = run(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert path.suffix == ".json"
    assert timed(output) == [FIRST]
    assert output["ended"] == {"why": "SIGTERM", "case": SECOND}
    assert f"ended early, in {SECOND}: SIGTERM" in done.stdout
    assert "3 cases, about" in done.stdout


def test_what_was_measured_outlives_a_kill(tmp_path):
    """Nothing runs at the end of a killed process: each case is on disk when it is done."""
    done, path, output = run(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    assert path.suffix == ".jsonl"
    assert timed(output) == [FIRST]
    assert output["ended"] == {"why": "killed", "case": SECOND}
    assert output["copy_bytes_per_s"] > 0
    assert len(Device(path.parent).table) == 1
    shown = fake_runs.redraw(tmp_path / "out")
    assert f"ended early, in {SECOND}: killed" in " ".join(shown.split())
    assert runs.measured(tmp_path / "out", output["commit_info"]["id"]) == {FIRST}


def test_a_dead_context_ends_a_run_and_names_its_case(tmp_path):
    """Whatever comes after an illegal access fails: it is not tried, and not blamed."""
    done, _, output = run(tmp_path, DEAD)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert timed(output) == [FIRST]
    assert output["ended"] == {"why": "the CUDA context is dead", "case": SECOND}
    assert [row["id"] for row in output["not_timed"]] == [SECOND]
    assert "illegal memory access" in output["not_timed"][0]["reason"]


def test_an_error_of_one_case_ends_nothing(tmp_path):
    """A baseline that fails is noted, and the next case is timed."""
    done, _, output = run(tmp_path, "raise RuntimeError('no such thing')")
    assert done.returncode == 0, done.stdout
    assert timed(output) == [FIRST, THIRD]
    assert output["ended"] is None
    assert [row["reason"] for row in output["not_timed"]] == ["RuntimeError: no such thing"]


def test_a_spent_budget_is_said_once(tmp_path):
    done, _, output = run(tmp_path, "import time; time.sleep(6)", "--budget=5")
    assert timed(output) == [FIRST, SECOND]
    assert done.stdout.count("the budget of 5 s") == 1
    assert "1 cases are left" in done.stdout


def test_a_journal_that_was_cut_off_is_read(tmp_path):
    output = fake_runs.of_operations(1, {"eager": 4e-6, "fused_elbo": 2e-6})
    journal = runs.Journal(tmp_path, output)
    for row in output["benchmarks"][:2]:
        journal.add(started=row["extra_info"]["op"])
        journal.add(benchmark=row)
    journal.add(started="the third")
    with journal.path.open("a") as file:
        file.write('{"benchmark": {"extra_in')
    found = runs.load(journal.path)
    assert found["benchmarks"] == runs.shorten(output["benchmarks"][:2])
    assert found["ended"] == {"why": "killed", "case": "the third"}
    assert found["machine_info"] == output["machine_info"]
    assert journal.finish(output).suffix == ".json"
    assert not journal.path.exists()
    lines = ["{", json.dumps({"started": "a"})]
    with pytest.raises(ValueError, match="Expecting"):
        runs.from_journal(lines)


# In Python's place: it notes what it should run, and fails to measure where it is told to.
MAKE_BENCH = """#!/bin/sh
echo "$2" >> {log}
[ "$2" != "{fails}" ]
"""


@pytest.mark.parametrize("fails", [True, False])
def test_make_bench_draws_and_prints_and_then_fails(tmp_path, fails):
    log, binary = tmp_path / "log", tmp_path / "bin"
    binary.mkdir()
    (binary / "python").write_text(MAKE_BENCH.format(log=log, fails="pytest" if fails else ""))
    (binary / "python").chmod(0o755)
    (tmp_path / "installed").touch()
    command = ["make", "bench", f"VENV={tmp_path}", "-o", "pyproject.toml", "-o", "constraints.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert log.read_text().split() == ["pytest", "bench.plot", "bench.table"]
    assert (done.returncode != 0) == fails


def test_time_is_foretold_from_what_compiles():
    """On a CPU a function is compiled once for all shapes, on a GPU for each."""
    case = Case("gaussian_kl", "compile", 64, 8, "float32", "forward")
    shapes = [case, case._replace(batch=512), None]
    once, thrice = (progress.expected_seconds(shapes, device) for device in ("cpu", "cuda"))
    assert once == 3 * progress.CASE["cpu"] + progress.COMPILATION["cpu"]
    assert thrice == 3 * progress.CASE["cuda"] + 2 * progress.COMPILATION["cuda"]


def swept(device):
    grid = GRIDS[device, "default"]
    return cases.sweep(ENTRIES, device, cases.shapes(grid), grid.dtypes)


def test_tuned_compilers_are_left_to_the_full_grid():
    providers = {case.provider for case in swept("cuda") if is_tuned({"case": case})}
    assert providers == {"compile-max", "compile-reduce-overhead"}
    assert is_tuned({"provider": "compile-max"})
    assert not is_tuned({"estimator": "iwae"})
