"""Speed-ups, charts and pages from made-up runs: of one run each, redrawn alike, without torch."""

import json

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

import rich.console

from bench import plot, suites, table
from bench.harness import machine, runs
from bench.reporting import on_cpu, pages, tables
from bench.reporting.results import Device, present
from helpers import fake_runs

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@pytest.fixture
def folder(tmp_path):
    """Results of two made-up runs: all providers, then fused_elbo alone."""
    everyone = {"eager": 4e-6, "compile": 1.5e-6, "compile-max": 1e-6, "fused_elbo": 2e-6}
    for day, seconds in ((1, everyone), (2, {"fused_elbo": 1e-9})):
        fake_runs.write(tmp_path / "results", day, fake_runs.of_operations(day, seconds))
    return tmp_path / "results"


def test_speedups_are_against_the_best_and_within_one_run(folder):
    speedups = Device(folder / "made-up").all_speedups
    assert set(speedups.rival) == {"compile-max"}
    assert speedups.best.tolist() == pytest.approx([0.5] * len(speedups))
    assert speedups.eager.tolist() == pytest.approx([2.0] * len(speedups))
    assert speedups.beyond_noise.all()


def test_plots_are_the_same_twice_and_need_no_torch(folder, tmp_path):
    shown, files = fake_runs.redraw_twice(folder, tmp_path / "twin")
    assert all("0.50\u00d7" in text for text in shown)
    assert sum(p.suffix == ".png" for p in files) == 12
    text = (folder / "made-up" / "README.md").read_text()
    assert "In 48 of 48 cells" in text  # behind compile-max on all three clocks


def test_readme_table_goes_between_its_markers(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    pages.fill(tmp_path, folder, suites.PAGES)
    assert readme.read_text() == "no markers\n"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    pages.fill(tmp_path, folder, suites.PAGES)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "[Made Up](results/made-up/README.md)" in text


def test_pages_are_filled_wherever_they_have_markers(folder, tmp_path):
    """Links are of the page; a marker of no section, and one without its end, stay as they are."""
    docs = tmp_path / "docs"
    docs.mkdir()
    unknown = "<!-- other:begin -->\nkept\n<!-- other:end -->\n"
    (docs / "a.md").write_text(f"{BEGIN}\n{END}\n{unknown}<!-- quality:begin -->\n")
    (docs / "b.md").write_text("<!-- drop-ins:begin -->\nold\n<!-- drop-ins:end -->\n")
    pages.fill(tmp_path, folder, suites.PAGES)
    first = (docs / "a.md").read_text()
    assert "[Made Up](../results/made-up/README.md)" in first
    assert first.endswith(f"{END}\n{unknown}<!-- quality:begin -->\n")
    assert "old" not in (docs / "b.md").read_text()
    assert pages.NONE in (docs / "b.md").read_text()


def test_other_folders_of_results_leave_the_pages_alone(folder, tmp_path):
    root = tmp_path / "elsewhere"
    root.mkdir()
    (root / "README.md").write_text(f"{BEGIN}\nold\n{END}\n")
    pages.fill(root, folder, suites.PAGES)
    assert "old" in (root / "README.md").read_text()


def test_new_operation_is_reported_without_an_edit(tmp_path):
    """Charts and tables take operations, their order and their suite from the rows alone."""
    output = fake_runs.of_operations(1, {"eager": 4e-6, "fused_elbo": 2e-6})
    later = json.loads(json.dumps(output))
    for benchmark in later["benchmarks"]:
        benchmark["extra_info"]["op"] = "a_new_" + benchmark["extra_info"]["op"]
    for day, run in ((1, output), (2, later)):
        folder = fake_runs.write(tmp_path, day, run)
    plot.main(["--results", str(tmp_path)])
    device = Device(folder)
    ops = ["gaussian_kl", "elbo_step", "a_new_gaussian_kl", "a_new_elbo_step"]
    assert present(device.right) == present(device.speedups) == ops
    assert "| `a_new_elbo_step` | forward |" in (folder / "README.md").read_text()
    assert (folder / "plots" / "time-a_new_elbo_step-float32.png").exists()


def test_rows_from_before_suites_are_read_as_they_were():
    """They say no suite: by the operation's name. And the oldest no K: one sample everywhere."""

    def old(op, **more):
        info = {"op": op, "provider": "eager", "batch": 64, "latent": 32, "dtype": "float32"}
        return info | {"direction": "forward+backward"} | more

    assert runs.case_of(old("gaussian_kl")).suite == "operations"
    assert runs.case_of(old("gaussian_kl")).samples == 1
    assert runs.case_of(old("iwae_step", samples=8)).suite == "samples"
    assert runs.case_of(old("pyro_step", samples=1)).suite == "drop_ins"
    assert runs.case_of(old("iwae_step", suite="operations")).suite == "operations"


def run_on_cpu(day, **numba):
    """Two made-up operations, and what the run knew of numba: nothing, None or a version."""
    output = fake_runs.of_operations(day, {"eager": 4e-6, "fused_elbo": 2e-6})
    output["machine_info"] |= {"device": "cpu", "gpu": None} | numba
    for benchmark in output["benchmarks"]:
        info = benchmark["extra_info"]
        del info["host"], info["graph"]
        info["clock"] = "host"
    return output


@pytest.mark.parametrize(
    ("numba", "words", "header"),
    [
        (
            {},
            "on a CPU `fused_elbo` is its PyTorch reference",
            "PyTorch reference, wall clock",
        ),
        (
            {"numba": None},
            "without numba `fused_elbo` is its PyTorch reference",
            "PyTorch reference, wall clock",
        ),
        (
            {"numba": "0.1"},
            "on a CPU `fused_elbo` runs numba's kernels",
            "numba's kernels, wall clock",
        ),
    ],
)
def test_reports_of_a_cpu_say_what_ran(tmp_path, numba, words, header):
    """Before there were kernels for CPUs, without numba, and with it."""
    folder = fake_runs.write(tmp_path / "results", 1, run_on_cpu(1, **numba))
    page = tmp_path / "README.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    plot.main(["--results", str(tmp_path / "results")])
    pages.fill(tmp_path, tmp_path / "results", suites.PAGES)
    text = (folder / "README.md").read_text()
    assert words in text
    assert header in page.read_text()
    assert ("| numba | 0.1 |" in text) == on_cpu.has_kernels(numba)
    assert ("still of the PyTorch reference" in text) is False
    device = Device(folder)
    assert ("numba's kernels" in device.subject) == on_cpu.has_kernels(numba)
    assert ("numba's kernels" in on_cpu.of_samples(device.info)) == on_cpu.has_kernels(numba)


def test_cells_of_runs_before_numba_are_named(tmp_path):
    """A newer run that has a part of the cells alone leaves the others as they were."""
    before, after = run_on_cpu(1), run_on_cpu(2, numba="0.1")
    part = after["benchmarks"][: len(after["benchmarks"]) // 2]
    for day, run in ((1, before), (2, after | {"benchmarks": part})):
        folder = fake_runs.write(tmp_path, day, run)
    plot.main(["--results", str(tmp_path)])
    text = (folder / "README.md").read_text()
    (name, _), _ = Device(folder).runs
    assert f"Cells from these runs are still of the PyTorch reference: {name}." in text
    link = suites.PAGES["results"]([Device(folder)], lambda device: "link")[1]
    assert link.columns[1] == "link, PyTorch reference and numba's kernels, wall clock"

    fake_runs.write(tmp_path, 3, run_on_cpu(3, numba="0.1"))
    plot.main(["--results", str(tmp_path)])
    assert "still of the PyTorch reference" not in (folder / "README.md").read_text()


def test_tables_fit_a_terminal_of_80_columns():
    """Tables of the committed runs, with no cell cut off or wrapped."""
    console = rich.console.Console(width=200)
    for path in runs.devices(fake_runs.ROOT / "results"):
        for shown in suites.terminal(Device(path)):
            assert console.measure(tables.terminal(shown)).maximum <= 80, shown.title


def test_first_line_says_what_came_out(folder, capsys):
    """Twice as fast as eager, half as fast as the tuned compiler, in all 8 cells."""
    table.main(["--results", str(folder)])
    first = " ".join(capsys.readouterr().out.split("medians")[0].split())
    assert "fused_elbo is 2.00\u00d7 as fast as eager PyTorch, and 0.50\u00d7 as fast as" in first
    assert "faster in 0 cells, within noise in 0, slower in 8" in first


def test_what_was_not_timed_is_said_once(folder, capsys):
    """A line for each operation and provider, of the newest run alone."""
    rows = [
        {"op": "gaussian_kl", "provider": "eager", "batch": batch, "latent": 8, "samples": 1,
         "dtype": "float32", "direction": "forward", "suite": "operations", "id": str(batch),
         "status": "left out", "reason": f"needs {batch} GiB"}
        for batch in (4, 8, 16)
    ]  # fmt: skip
    run = fake_runs.of_operations(3, {"eager": 4e-6, "fused_elbo": 2e-6})
    for day in (3, 4):
        fake_runs.write(folder, day, run | {"not_timed": rows})
    table.main(["--results", str(folder)])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("left out") == 1
    assert "left out, not timed: eager gaussian_kl: needs 4 GiB (and 2 more)" in shown


def test_damaged_run_is_named(folder):
    path = folder / "made-up" / "20260105T000000-abc0005.json"
    path.write_text('{"machine_info": {')
    with pytest.raises(SystemExit, match=r"20260105T000000-abc0005\.json is damaged"):
        Device(folder / "made-up")


def test_charts_leave_the_pages_alone(folder, tmp_path, monkeypatch):
    """The usual command writes into the device's folder; the pages are a maintainer's."""
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nold\n{END}\n")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    plot.main(["--results", str(folder), "--latest"])
    assert "old" in readme.read_text()
    plot.main(["--results", str(folder), "--pages"])
    assert "old" not in readme.read_text()


def test_machine_knows_numba(monkeypatch):
    """Where the interpreter has the CPU tensors, numba's kernels do not run."""
    pytest.importorskip("numba")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert machine.describe("cpu")["numba"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert machine.describe("cpu")["numba"] is None
