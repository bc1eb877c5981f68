"""The command on models of scvi-tools: its message without them, its switch, its JSON's reports."""

import argparse
import builtins
import json
import types

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import suites
from bench.reporting.formats import ratio
from bench.reporting.results import Device
from bench.single_cell import __main__ as command
from bench.single_cell import charts, measure, models, results, tables
from fused_elbo import compat
from helpers import fake_runs


def test_without_scvi_tools_it_says_what_to_do(monkeypatch):
    imported = builtins.__import__

    def absent(name, *arguments, **options):
        if name.split(".")[0] == "scvi":
            raise ModuleNotFoundError("No module named 'scvi'", name="scvi")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SystemExit, match=r"environment of its own.*\[single-cell\].*No module"):
        command.main([])


@pytest.mark.parametrize("bad", [["--rounds", "1"], ["--trainings", "1"]])
def test_quartiles_need_two_rounds(bad, capsys):
    with pytest.raises(SystemExit):
        command.main(bad)
    assert "at least 2" in capsys.readouterr().err


def test_a_turn_has_a_step(capsys):
    with pytest.raises(SystemExit):
        command.main(["--in-a-row", "0"])
    assert "--in-a-row must be at least 1" in capsys.readouterr().err


class Module:
    """A stand-in for a module of scvi-tools: it calls the likelihood by name."""

    def __init__(self, names):
        self.names = names

    def get_reconstruction_loss(self):
        return "scvi-tools'"


class Peaks:
    def __init__(self):
        self.module = Module(None)


@pytest.fixture
def programs():
    kinds = dict.fromkeys(["SCVI", "SCANVI", "TOTALVI"], object)
    scvi = types.SimpleNamespace(model=types.SimpleNamespace(**kinds, PEAKVI=Peaks))
    names = types.SimpleNamespace(**{name: f"own {name}" for name in models.REPLACED})
    return models.Models(scvi, names, None)


def test_the_lines_are_switched_there_and_back(programs):
    before = dict(vars(programs.module))
    programs.switch(None, after=True)
    assert vars(programs.module) == {
        "log_nb_positive": compat.scvi_log_nb_positive,
        "log_zinb_positive": compat.scvi_log_zinb_positive,
        "log_mixture_nb": compat.scvi_log_mixture_nb,
    }
    programs.switch(None, after=False)
    assert vars(programs.module) == before


def test_peakvi_has_a_method_instead(programs):
    model = Peaks()
    programs.switch(model, after=True)
    ours = compat.scvi_peakvi_reconstruction_loss
    assert model.module.get_reconstruction_loss is ours
    programs.switch(model, after=False)
    assert model.module.get_reconstruction_loss() == "scvi-tools'"


def test_document_says_the_same_lines():
    text = (fake_runs.ROOT / "docs" / "drop-ins.md").read_text()
    for name, function in models.REPLACED.items():
        assert f"nb.{name}" in text
        assert f"compat.{function.__name__}" in text


def test_they_take_turns():
    calls = []
    found = measure.alternating(lambda: calls.append("b"), lambda: calls.append("a"), 4)
    assert "".join(calls) == "abbaabba"
    low, high = found["quartiles"]
    assert 0 < low <= found["speed_up"] <= high


def test_replaced_is_as_before_afterwards():
    """An attribute that a class has, and one that it inherits."""
    inherited = torch.Tensor.float
    with (
        measure.replaced(torch.Tensor, "float", torch.Tensor.double),
        measure.replaced(measure, "CURVE", "another"),
    ):
        assert torch.zeros(1).float().dtype == torch.float64
        assert measure.CURVE == "another"
    assert "float" not in vars(torch.Tensor)
    assert torch.Tensor.float is inherited
    assert measure.CURVE == "elbo_train"


def test_cells_are_sparse_and_of_the_seed():
    pytest.importorskip("anndata")
    one, again, other = (models.simulated(60, 40, seed) for seed in (0, 0, 1))
    assert (one.X != again.X).nnz == 0
    assert (one.X != other.X).nnz > 0
    assert one.obsm["proteins"].shape == (60, models.PROTEINS)
    assert models.UNLABELED in set(one.obs["label"])


def figures(seconds, speed_up):
    times = {"before_s": speed_up * seconds, "after_s": seconds, "speed_up": speed_up}
    return times | {"quartiles": [0.9 * speed_up, 1.1 * speed_up]}


def record():
    step = {**figures(0.01, 2.5), "before_bytes": 2**22, "after_bytes": 2**20}
    threads = {count: {"step": step, "train": figures(3.0, 1.5)} for count in ("1", "2")}
    curve = [700.0, 650.0, 640.0]
    off = {"before": 2e-7, "after": 1e-7}
    curves = {"before": curve, "after": curve, "float64": curve, "off": off}
    model = {"threads": threads, "curves": curves}
    settings = {"cells": 2560, "genes": 2000, "batch": 128, "epochs": 3, "rounds": 40}
    return {
        "machine_info": {"torch": "0", "device": "cpu", "device_name": "Made Up"},
        "scvi_tools": "1.2.3", "settings": settings | {"trainings": 5, "in_a_row": 5}, "zeros": 0.9,
        "models": {"SCVI, nb": model, "PEAKVI": model},
    }  # fmt: skip


@pytest.fixture
def device(tmp_path):
    folder = fake_runs.write(tmp_path / "results", 1, fake_runs.of_operations(1, {"eager": 1e-5}))
    (folder / results.FILE).write_text(json.dumps(record()))
    return Device(folder)


def test_table_has_steps_and_trainings(device):
    _, shown = tables.compared(results.read(device)).shown(0)
    rows = [row for row in shown if row[0] == "PEAKVI"]
    assert [row[1:3] for row in rows][:2] == [[1, "a step"], [1, "`model.train()`"]]
    assert rows[0][3:5] == ["25 ms", "10 ms"]
    assert rows[0][5].text == ratio(2.5)
    assert "4 MiB → 1 MiB" in rows[0]
    assert rows[1][-1] == "2.0e-07 → 1.0e-07"


def test_page_and_readme_have_it(device):
    parts = suites.PAGES["single-cell"](
        [device], lambda d, f="README.md", t="made up": f"[{t}]({f})"
    )
    assert "scvi-tools 1.2.3" in parts[0]
    assert parts[-1] == "![speed-ups and curves](plots/single-cell.png)"
    fake_runs.redraw(device.folder.parent)
    assert "## Models of scvi-tools" in (device.folder / "README.md").read_text()
    assert (device.folder / "plots" / "single-cell.png").exists()


def test_nothing_is_shown_where_nothing_was_measured(tmp_path):
    folder = fake_runs.write(tmp_path, 1, fake_runs.of_operations(1, {"eager": 1e-5}))
    empty = Device(folder)
    assert charts.charts(empty) == {}
    assert tables.sections(empty) == tables.project([empty], None) == []
    assert list(tables.terminal(empty)) == []


def test_the_real_one_trains_as_before(tmp_path):
    """Where scvi-tools is installed: one model, end to end."""
    pytest.importorskip("scvi")
    options = ["--cells", "200", "--genes", "100", "--epochs", "2", "--rounds", "2", "--seed", "3"]
    options += ["--trainings", "2", "--threads", "1", "--results", str(tmp_path)]
    command.main([*options, "--models", "SCVI, nb"])
    found = json.loads(next(tmp_path.glob(f"*/{results.FILE}")).read_text())
    assert max(found["models"]["SCVI, nb"]["curves"]["off"].values()) < 1e-4


def test_steps_share_their_beginning(programs, monkeypatch):
    """Both sides step a model of their own, from the same seed, with their own functions."""
    switched, seeds = [], []
    weight = torch.ones(3)
    monkeypatch.setattr(programs, "make", lambda name, seed: seeds.append(seed))
    monkeypatch.setattr(programs, "minibatch", lambda model, size: None)
    monkeypatch.setattr(programs, "switch", lambda model, after: switched.append(after))
    monkeypatch.setattr(models, "optimizer_of", lambda model: None)
    monkeypatch.setattr(models, "step", lambda *given: weight.exp().sum())
    options = argparse.Namespace(seed=5, batch=2, rounds=2, in_a_row=3)
    found = measure.steps(programs, "SCVI, nb", options)
    assert seeds == [5, 5]
    # Each side takes three steps to warm up, one for its memory, and two turns of three.
    assert switched.count(True) == switched.count(False) == 3 + 1 + 2 * 3
    assert found["before_bytes"] == found["after_bytes"] > 0
