"""pytest's options for the benchmarks, and the veto before any timing."""

import json
import os

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.harness import functions, measure
from bench.harness.cases import Case
from bench.operations.entries import ENTRIES
from helpers import fake_runs
from helpers.fake_runs import ROOT

ONE = "gaussian_kl-eager-64-8-float32-forward"


def test_option_runs_bench_and_writes_json(tmp_path):
    """--benchmark is not mistaken for one of pytest-benchmark's options, which go on working."""
    storage = f"--benchmark-storage={tmp_path / 'saved'}"
    common = ["--benchmark", "--grid", "smoke", "-k", ONE + " and not backward", storage]
    first = fake_runs.pytest(
        *common,
        f"--results={tmp_path}",
        "--benchmark-save=a",
        f"--benchmark-json={tmp_path}/b.json",
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert "1 passed" in first.stdout
    assert ONE in first.stdout

    (path,) = tmp_path.glob("*/*-*.json")
    data = json.loads(path.read_text())
    (benchmark,) = data["benchmarks"]
    assert benchmark["extra_info"]["status"] == "right"
    assert benchmark["extra_info"]["suite"] == "operations"
    assert benchmark["extra_info"]["floor_bytes"] == 8 * 64 * 8 + 4 * 64
    assert benchmark["stats"]["median"] > 0
    assert "data" not in benchmark["stats"]
    assert data["copy_bytes_per_s"] > 0
    for text in (path.read_text(), (tmp_path / "b.json").read_text()):
        assert os.uname().nodename not in json.loads(text)["machine_info"].values()
        assert str(ROOT) not in text
    assert len((path.parent / "summary.csv").read_text().splitlines()) == 2

    second = fake_runs.pytest(*common, "--benchmark-compare", f"--resume={tmp_path}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 skipped" in second.stdout


def test_bench_is_collected_only_with_the_option():
    done = fake_runs.pytest("bench", "--collect-only", "-q")
    assert "test_operation" not in done.stdout
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_wrong_baseline_is_shown_and_not_timed(tmp_path):
    """End to end: a textbook KL that forgot its half."""
    (tmp_path / "careless.py").write_text(
        "from bench.operations.entries import ENTRIES\n"
        "providers = ENTRIES['gaussian_kl'].providers\n"
        "right = providers['eager']\n"
        "providers['eager'] = lambda mu, logvar: 2 * right(mu, logvar)\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    options = ["-p", "careless", "--grid", "smoke", f"--results={tmp_path}/out"]
    done = fake_runs.pytest("--benchmark", "-k", ONE + " and not backward", *options, path=path)
    assert (
        "WRONG gaussian_kl-eager-64-8-float32-forward: output rows: relative error 1" in done.stdout
    )
    (written,) = (tmp_path / "out").glob("*/*-*.json")
    data = json.loads(written.read_text())
    assert data["benchmarks"] == []
    assert data["not_timed"][0]["status"] == "wrong"


def test_slow_calls_are_few(monkeypatch):
    """The first, the check's and one that is timed; others warm up and are timed thrice."""
    case = Case("gaussian_kl", "eager", 16, 8, "float32", "forward")
    right, calls = ENTRIES[case.op].providers["eager"], []

    def counted(*inputs):
        calls.append(inputs)
        return right(*inputs)

    for limit, expected in ((-1.0, 3), (1e9, 9)):
        calls.clear()
        monkeypatch.setattr(measure, "SLOW", limit)
        prepared = measure.Prepared(ENTRIES[case.op], case, "cpu", counted)
        assert prepared.slow == (limit < 0)
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("provider", "outcome"),
    [("eager", pytest.skip.Exception), ("fused_elbo", pytest.fail.Exception)],
)
def test_wrong_provider_gets_a_report(monkeypatch, provider, outcome):
    """Ours fails the suite, another's is reported; neither is timed."""
    monkeypatch.setattr(functions, "get", lambda *_: lambda recon, x: (recon - x).sum(-1))
    case = Case("gaussian_nll", provider, 16, 8, "float32", "forward")
    run = fake_runs.Run()
    with pytest.raises(outcome, match="wrong, not timed"):
        measure.prepare(ENTRIES[case.op], case, run)
    assert run.not_timed[0]["status"] == "wrong"
