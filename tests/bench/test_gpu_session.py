"""The first minutes on a GPU, with stand-ins: what each step runs, and what a session survives."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

import torch
from torch.autograd import DeviceType

from bench import gpu_session, gpu_steps
from bench.gpu_session import STEPS, Step
from bench.harness import clock, machine
from helpers import fake_runs

ENDLESS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
WRITE = "import sys; open(sys.argv[1] + '/last', 'w').close()"
# A CUDA machine as far as collection asks.
CUDA = """
import json, sys
from bench.harness import machine
machine.DEVICE = "cuda"
machine.describe = lambda device: {"device": device, "device_name": "Made Up"}
import pytest
for name, arguments in json.loads(sys.argv[1]).items():
    print("step", name)
    pytest.main([*arguments, "--collect-only", "-q", "-p", "no:cacheprovider"])
"""


def test_shares_fit_the_budget():
    assert sum(step.share for step in STEPS) <= gpu_session.BUDGET
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert min(step.share for step in STEPS if "{budget}" in str(step.command)) > 40


def test_what_runs_comes_before_what_is_fast():
    assert [step.name for step in STEPS] == [
        "device", "check", "graphs", "copy", "noise", "headline", "operations", "samples",
        "mixtures", "tuned", "kernels",
    ]  # fmt: skip


def test_a_session_survives_its_steps(tmp_path, monkeypatch):
    """One hangs and heeds no SIGTERM, one crashes, and the last one runs all the same."""
    monkeypatch.setattr(gpu_session, "GRACE", 1)
    monkeypatch.setattr(gpu_session, "BUDGET", 90)
    steps = [
        Step("endless", 3, ("-c", ENDLESS)),
        Step("crash", 27, ("-c", CRASH)),
        Step("last", 60, ("-c", WRITE, "{out}")),
    ]
    report = gpu_session.session(steps, tmp_path, 90)
    assert report["crash"]["returncode"] == -11
    assert (report["endless"]["returncode"], report["endless"]["time_was_up"]) == (None, True)
    assert (report["last"]["returncode"], report["last"]["time_was_up"]) == (0, False)
    assert (tmp_path / "last").exists()
    assert json.loads((tmp_path / "session.json").read_text()) == report


@pytest.mark.parametrize("used", [0.1, 1.0])
def test_time_that_is_left_goes_to_later_steps(tmp_path, monkeypatch, used):
    """Whatever part of its time each step takes, none gets more than is left of the budget."""
    now, given = [0.0], []

    def run(step, out, seconds):
        given.append(seconds)
        now[0] += used * seconds
        assert now[0] - used * seconds + seconds <= gpu_session.BUDGET
        return 0, False

    monkeypatch.setattr(gpu_session, "run", run)
    gpu_session.session(STEPS, tmp_path, gpu_session.BUDGET, clock=lambda: now[0])
    assert len(given) == len(STEPS)
    assert all(got >= step.share - 1e-6 for got, step in zip(given, STEPS, strict=True))


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DEVICE", "cpu")
    with pytest.raises(SystemExit, match="GPU"):
        gpu_session.main([str(tmp_path)])


def test_steps_select_what_they_should(tmp_path):
    """Their -k expressions, collected as on a CUDA machine: cases by step."""
    timed = {
        step.name: [part.format(out=tmp_path, budget=1) for part in step.command[2:]]
        for step in STEPS
        if "--benchmark" in step.command
    }
    command = [sys.executable, "-c", CUDA, json.dumps(timed)]
    done = subprocess.run(
        command, cwd=fake_runs.ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = {name: [] for name in timed}
    for line in done.splitlines():
        if line.startswith("step "):
            name = line.removeprefix("step ")
        elif "::" in line:
            found[name].append(line)
    assert all(found.values()), done
    counts = {name: len(ids) for name, ids in found.items()}
    # Three operations, shapes, providers, and two dtypes. The others: two providers each.
    assert counts["headline"] == 3 * 3 * 3 * 2
    assert not any("compiled" in i or "max" in i or "overhead" in i for i in found["headline"])
    assert all("16384-1024" in i or "512-8000" in i for i in found["operations"])
    assert counts["operations"] == 8 * 2 * 2 + 4 * 2  # those of counts in float32 alone
    assert any("compile-max" in i for i in found["tuned"])
    assert any("reduce-overhead" in i for i in found["tuned"])
    assert any("eager" in i for i in found["tuned"])
    assert {i.split("[")[1].split("-")[0] for i in found["mixtures"]} == {
        "mixture_log_prob", "kl_aggregate", "kl_stratified"
    }  # fmt: skip
    assert any("iwae_step-fused_elbo-K64-256-64" in i for i in found["samples"])
    assert any("iwae_encoder-fused_elbo-K512-1024-128" in i for i in found["samples"])
    assert max(counts.values()) < 60


@pytest.fixture
def report(tmp_path):
    return gpu_steps.Report(tmp_path, "check")


def failing(op, error):
    def function(case):
        if case.op == op:
            raise error
        return gpu_steps.checked(case)

    return function


def few_cases():
    shapes, ops = [(16, 8)], ("gaussian_kl", "gaussian_nll", "bernoulli_nll")
    return [c for c in gpu_steps.cases(shapes, ["float32"], ["fused_elbo"]) if c.op in ops]


def test_one_wrong_case_ends_nothing(report):
    error = RuntimeError("wrong")
    assert not gpu_steps.each(report, few_cases(), failing("gaussian_nll", error))
    found = json.loads(report.path.read_text())["check"]
    assert len(found) == 3
    assert [list(v) for v in found.values()] == [["error"], ["failed"], ["error"]]


def test_a_dead_device_ends_a_step_and_is_named(report, monkeypatch):
    """The cases before it are on disk, with the one that did it. None comes after it."""
    cases = few_cases()
    calls = []
    monkeypatch.setattr(gpu_steps, "DEVICE", "cuda")
    monkeypatch.setattr(clock, "device_lives", lambda: len(calls) < 2)

    def function(case):
        calls.append(case)
        if len(calls) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {}

    with pytest.raises(gpu_steps.DeadDeviceError, match=cases[1].op):
        gpu_steps.each(report, cases, function)
    found = json.loads(report.path.read_text())["check"]
    first, second = found.values()
    assert first == {}
    assert "illegal memory access" in second["failed"]
    assert len(calls) == len(found) == 2


def test_every_operation_is_launched_and_checked():
    ops = {case.op for case in gpu_steps.cases(gpu_steps.SHAPES[:1], ["float32"], gpu_steps.ours())}
    missing = {op for op in gpu_steps.ENTRIES if not gpu_steps.ENTRIES[op].provider_names("cpu")}
    assert ops == set(gpu_steps.ENTRIES) - missing - {"decoder"}  # the user's own


def event(name, device=DeviceType.CUDA, is_user_annotation=False):
    return SimpleNamespace(name=name, device_type=device, is_user_annotation=is_user_annotation)


def test_annotations_are_no_kernels():
    events = [
        event("Torch-Compiled Region: 0/0", is_user_annotation=True),
        event("triton_per_fused_add_0"),
        event("aten::add", DeviceType.CPU),
        event("Memcpy HtoD (Pageable -> Device)"),
        event("Memset (Device)"),
    ]
    assert gpu_steps.kernels_of(events) == {
        "count": 1,
        "names": ["triton_per_fused_add_0"],
        "copies": ["Memcpy HtoD (Pageable -> Device)", "Memset (Device)"],
    }


def test_a_profile_is_read():
    """The fields are those that torch's events have; a CPU has no kernel."""
    (case,) = [c for c in few_cases() if c.op == "gaussian_kl"]
    assert gpu_steps.counted(case) == {"count": 0, "names": [], "copies": []}


def test_a_step_is_a_command(tmp_path):
    command = [sys.executable, "-m", "bench.gpu_steps", "copy", str(tmp_path)]
    subprocess.run(command, cwd=fake_runs.ROOT, check=True)
    found = json.loads((tmp_path / "copy.json").read_text())
    assert found["copy"]["copy_bytes_per_s"] > 0
    assert found["machine_info"]["torch"] == torch.__version__
