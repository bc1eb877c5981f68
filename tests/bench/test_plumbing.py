"""pytest's options for the benchmarks, the veto before any timing, and where imports may point."""

import ast
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from helpers.fake_runs import ROOT

from bench.harness import functions, measure
from bench.harness.cases import Case
from bench.operations.entries import ENTRIES

ONE = "gaussian_kl-eager-64-8-float32-forward"
BENCH = ROOT / "bench"


def run(*arguments, path=""):
    """pytest in a process of its own, from the repository's root."""
    env = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_option_runs_bench_and_writes_json(tmp_path):
    """--benchmark is not mistaken for one of pytest-benchmark's options, which go on working."""
    storage = f"--benchmark-storage={tmp_path / 'saved'}"
    common = ["--benchmark", "--grid", "smoke", "-k", ONE + " and not backward", storage]
    first = run(
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

    second = run(*common, "--benchmark-compare", f"--resume={tmp_path}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 skipped" in second.stdout


def test_bench_is_collected_only_with_the_option():
    done = run("bench", "--collect-only", "-q")
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
    done = run("--benchmark", "-k", ONE + " and not backward", *options, path=path)
    assert (
        "WRONG gaussian_kl-eager-64-8-float32-forward: output rows: relative error 1" in done.stdout
    )
    (written,) = (tmp_path / "out").glob("*/*-*.json")
    data = json.loads(written.read_text())
    assert data["benchmarks"] == []
    assert data["not_timed"][0]["status"] == "wrong"


class Benchmark:
    def __init__(self):
        self.extra_info = {}


class Run:
    def __init__(self):
        self.not_timed = []


@pytest.mark.parametrize(
    ("provider", "outcome"),
    [("eager", pytest.skip.Exception), ("fused_elbo", pytest.fail.Exception)],
)
def test_wrong_provider_gets_a_report(monkeypatch, provider, outcome):
    """Ours fails the suite, another's is reported; neither is timed."""
    monkeypatch.setattr(functions, "get", lambda *_: lambda recon, x: (recon - x).sum(-1))
    case = Case("gaussian_nll", provider, 16, 8, "float32", "forward")
    benchmark, run = Benchmark(), Run()
    benchmark.extra_info.update(case._asdict())
    with pytest.raises(outcome, match="wrong, not timed"):
        measure.prepare(ENTRIES[case.op], case, benchmark, run)
    assert run.not_timed[0]["status"] == "wrong"


# An own module is imported at the top, from the same folder or one that stands before it.
ORDER = ["harness", "reporting", "operations", "samples", "drop_ins", "quality", ""]
FILES = sorted(
    path
    for path in BENCH.rglob("*.py")
    if path.name not in ("static_report.py", "static_gates.py", "machine_code.py")
    and path.parent.name != "static"
)


def own_imports(path, tree):
    """(folder, node) of each import of a module of bench/."""
    here = path.relative_to(BENCH).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            inner = (node.module or "").split(".")[0]
            names = [inner] if inner else [alias.name for alias in node.names]
            for name in names:
                yield (base or ((name,) if (BENCH / name).is_dir() else ("",)))[0], node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            assert not any(n.split(".")[0] == "bench" for n in names), "relative within bench/"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCH)))
def test_imports_point_one_way_and_stand_at_the_top(path):
    folder = (*path.relative_to(BENCH).parent.parts, "")[0]
    tree = ast.parse(path.read_text())
    for target, node in own_imports(path, tree):
        assert node in tree.body, f"line {node.lineno}: inside a function"
        assert ORDER.index(target) <= ORDER.index(folder), f"line {node.lineno}: against the arrows"


def imported_by(path):
    """The files of its own folder that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                if (path.parent / f"{name}.py").is_file():
                    yield path.parent / f"{name}.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(BENCH)))
def test_no_circle_of_imports(path):
    seen, pending = set(), list(imported_by(path))
    while pending:
        other = pending.pop()
        if other not in seen:
            seen.add(other)
            pending += imported_by(other)
    assert path not in seen
