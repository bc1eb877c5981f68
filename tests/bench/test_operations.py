"""The benchmark suite's own rules: options, the oracle's veto, byte models, redrawing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

import made_up

from bench import cases, measure, oracle, providers, report, results, test_operations, traffic

ROOT = Path(__file__).resolve().parents[1]
ONE = "gaussian_kl-eager-64-8-float32-forward"


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
        "from bench import providers\n"
        "right = providers.EAGER['gaussian_kl']\n"
        "providers.EAGER['gaussian_kl'] = lambda mu, logvar: 2 * right(mu, logvar)\n"
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


class Suite:
    def __init__(self):
        self.not_timed = []


@pytest.mark.parametrize(
    ("provider", "outcome"),
    [("eager", pytest.skip.Exception), ("fused_elbo", pytest.fail.Exception)],
)
def test_wrong_provider_gets_a_report(monkeypatch, provider, outcome):
    """Ours fails the suite, another's is reported; neither is timed."""
    monkeypatch.setattr(providers, "get", lambda *_: lambda recon, x: (recon - x).sum(-1))
    case = cases.Case("gaussian_nll", provider, 16, 8, "float32", "forward")
    benchmark, suite = Benchmark(), Suite()
    benchmark.extra_info.update(case._asdict())
    with pytest.raises(outcome, match="wrong, not timed"):
        test_operations.prepare(case, benchmark, suite)
    assert suite.not_timed[0]["status"] == "wrong"


def right_kl(mu, logvar):
    return providers.EAGER["gaussian_kl"](mu, logvar)


def wrong_gradient(mu, logvar):
    return right_kl(mu, logvar.detach()) + 0 * logvar.sum(-1)


def wrong_constant(recon, x):
    return 0.5 * (recon - x).pow(2).sum(-1)


def stale_noise(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(1))
    return mu + torch.exp(0.5 * logvar) * eps


def wrong_scale(mu, logvar):
    return mu + torch.exp(logvar) * torch.randn_like(mu)


def repeated_noise(mu, logvar):
    return mu + torch.exp(0.5 * logvar) * torch.randn(len(mu), 1).expand_as(mu)


@pytest.mark.parametrize(
    ("op", "function", "message"),
    [
        ("gaussian_kl", wrong_gradient, "gradient of logvar"),
        ("gaussian_nll", wrong_constant, "output rows"),
        ("gaussian_rsample", stale_noise, "same sample"),
        ("gaussian_rsample", wrong_scale, "variance"),
        ("gaussian_rsample", repeated_noise, "noise"),
    ],
)
def test_oracle_finds(op, function, message):
    case = cases.Case(op, "eager", 128, 64, "float32", "forward+backward")
    with pytest.raises(oracle.WrongResultError, match=message):
        measure.Prepared(case, "cpu", function)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", cases.OPERATIONS)
def test_oracle_accepts_every_uncompiled_provider(op, dtype):
    for provider in providers.names(op, "cpu"):
        if provider == "compile":
            continue
        case = cases.Case(op, provider, 32, 1024, dtype, "forward+backward")
        assert measure.Prepared(case, "cpu").error < oracle.TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("op", "forward", "backward"),
    [
        ("rsample_kl", 12, 20),
        ("gaussian_kl", 8, 16),
        ("gaussian_nll", 8, 12),
        ("gaussian_nll_learned", 12, 20),
        ("bernoulli_nll", 8, 12),
    ],
)
def test_byte_models_are_the_speed_contract(op, forward, backward):
    assert traffic.element_bytes(op, "forward") == forward
    assert traffic.element_bytes(op, "forward+backward") == forward + backward
    assert traffic.element_bytes(op, "forward+backward", "bfloat16") == (forward + backward) / 2


def test_step_takes_the_likelihoods_gradient_in_forward():
    """12 bytes a pixel in all, and sample + KL as ever."""
    step = traffic.floor_bytes("elbo_step", 10, 5, "float32", "forward+backward")
    assert step == 10 * (12 * cases.EVENTS + 32 * 5)


def test_floor_is_the_size_of_the_tensors():
    """The table of floors against the tensors that the operations really have."""
    for op in traffic.FLOORS:
        case = cases.Case(op, "eager", 6, 10, "float32", "forward")
        tensors = cases.make_inputs(case, "cpu", 0)
        outputs = oracle.as_tuple(providers.EAGER[op](*tensors))
        size = sum(t.nbytes for t in [*tensors, *outputs])
        assert traffic.floor_bytes(op, 6, 10, "float32", "forward") == size


def test_sweep_spans_its_grid_from_the_start():
    grid = cases.GRIDS["cuda", "full"]
    shapes = cases.shapes(grid)
    assert len(set(shapes)) == len(grid.batches) * len(grid.latents)
    corners = {(b, d) for b in (64, 65536) for d in (8, 1024)}
    assert set(shapes[:4]) == corners
    assert shapes[0] == (65536, 1024)


def made_up_run(day, seconds):
    """``seconds`` by provider."""
    benchmarks = []
    for op in ("gaussian_kl", "elbo_step"):
        for batch, latent in ((64, 8), (64, 32), (512, 8), (512, 32)):
            for direction in cases.DIRECTIONS:
                for provider, base in seconds.items():
                    time = base * (1 + batch / 64 + latent / 8)
                    stats = {"median": time, "q1": 0.98 * time, "q3": 1.02 * time, "rounds": 9}
                    info = {
                        **cases.Case(op, provider, batch, latent, "float32", direction)._asdict(),
                        "status": "right",
                        "error": 1e-7,
                        "compile_seconds": 0.0,
                        "clock": "device",
                        "host": {**stats, "median": 2 * time},
                        "graph": stats,
                        "peak_bytes": 10 * batch * latent,
                        "floor_bytes": 12 * batch * latent,
                    }
                    benchmarks.append({"extra_info": info, "stats": stats})
    return made_up.run(day, benchmarks, "cuda", {"name": "Made Up"})


@pytest.fixture
def folder(tmp_path):
    """Results of two made-up runs: all providers, then fused_elbo alone."""
    everyone = {"eager": 4e-6, "compile": 1.5e-6, "compile-max": 1e-6, "fused_elbo": 2e-6}
    for day, seconds in ((1, everyone), (2, {"fused_elbo": 1e-9})):
        made_up.write(tmp_path / "results", day, made_up_run(day, seconds))
    return tmp_path / "results"


def test_speedups_are_against_the_best_and_within_one_run(folder):
    speedups = results.speedups(results.load(folder / "made-up"))
    assert set(speedups.rival) == {"compile-max"}
    assert speedups.best.tolist() == pytest.approx([0.5] * len(speedups))
    assert speedups.eager.tolist() == pytest.approx([2.0] * len(speedups))
    assert speedups.beyond_noise.all()


def redraw_twice(folder, twin):
    """Charts and tables of a folder and of its copy, in processes without torch.

    Returns what the terminal showed, and the files, which are the same byte by byte.
    """
    shutil.copytree(folder, twin)
    program = (
        "import sys; sys.modules['torch'] = None; from bench import plot, table\n"
        "for main in plot.main, table.main: main(['--results', sys.argv[1]])"
    )
    shown = []
    for seed, results_of in (("1", folder), ("2", twin)):
        command = [sys.executable, "-c", program, str(results_of)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    for name in files:
        assert (folder / name).read_bytes() == (twin / name).read_bytes(), name
    return shown, files


def test_plots_are_the_same_twice_and_need_no_torch(folder, tmp_path):
    shown, files = redraw_twice(folder, tmp_path / "twin")
    assert all("0.50\u00d7" in text for text in shown)
    assert sum(p.suffix == ".png" for p in files) == 12
    text = (folder / "made-up" / "README.md").read_text()
    assert "In 48 of 48 cells" in text  # behind compile-max on all three clocks


def test_readme_table_goes_between_its_markers(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    report.update_project_readme(folder)
    assert readme.read_text() == "no markers\n"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update_project_readme(folder)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "[Made Up](results/made-up/README.md)" in text
