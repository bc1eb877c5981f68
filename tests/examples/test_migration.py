"""examples/migration.py: one changed line leaves a program's loss curve where it was."""

import json
import math
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from helpers.scripts import is_picture, load

ROOT = Path(__file__).parents[2]
# Relative to the loss. Over 14 and 26 steps five seeds differ by at most 2.1e-7 and 4.4e-16.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def migration():
    return load("migration")


@pytest.fixture(params=[0, 1], ids=["pytorch", "pythae"])
def program(migration, request):
    return migration.PROGRAMS[request.param]


def digits():
    return torch.from_numpy(load_digits().data).float()[:800] / 16


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_curves_coincide_to_rounding(migration, program, dtype):
    options = digits(), 3, 2, "cpu", dtype
    before = migration.train(program, program.before, *options)
    pair = migration.compare(before, migration.train(program, program.after, *options))
    assert max(pair["difference"]) <= TOLERANCE[dtype]
    assert pair["before"][1] < 0.95 * pair["before"][0]  # it does train


def test_another_loss_is_seen(migration, program):
    """A KL that is 0.1 % too large: the comparison is not blind to it."""

    def wrong(recon_x, x, mu, logvar, *rest):
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum()
        loss = migration.scalar(program.after(recon_x, x, mu, logvar, *rest))
        return loss + 0.001 * kl / (1 if program.sums else len(x))

    options = digits(), 3, 2
    before = migration.train(program, program.before, *options)
    pair = migration.compare(before, migration.train(program, wrong, *options))
    assert max(pair["difference"]) > 5 * TOLERANCE[torch.float32]


def test_before_and_after_share_the_noise(migration, program, monkeypatch):
    drawn = []
    original = torch.randn_like

    def record(like):
        drawn.append(original(like))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn_like", record)
    noise = []
    for seed, loss_function in ((3, program.before), (3, program.after), (4, program.after)):
        migration.train(program, loss_function, digits()[:200], seed, 1)
        noise.append(torch.cat(drawn))
        drawn.clear()
    assert torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[1], noise[2])


def test_the_losses_before_are_the_originals(migration):
    """Computed by hand: 24 coins at 1/2, or half of six squared errors of 1; a KL of 1 each."""
    ones, mu, logvar = torch.ones(4, 6), torch.ones(4, 2), torch.zeros(4, 2)
    loss = migration.pytorch_loss(0.5 * ones, ones, mu, logvar)
    assert loss.item() == pytest.approx(24 * math.log(2) + 4)
    losses = migration.pythae_loss(0 * ones, ones, mu, logvar, None)
    assert [loss.item() for loss in losses] == pytest.approx([4, 3, 1])


def test_peak_of_a_call_on_a_cpu(migration):
    """Two vectors of 4,000 bytes at once, though three are made."""

    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second + 1

    # A scalar of a few bytes may be made on the way.
    assert 8000 <= migration.peak_bytes(call, torch.device("cpu")) < 8100


def test_script_measures_draws_and_writes(migration, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    numbers = tmp_path / "numbers.json"
    options = ["--epochs", "1", "--seeds", "2", "--rounds", "3", "--device", "cpu"]
    migration.main([*options, "--out", str(tmp_path / "out"), "--json", str(numbers)])
    out = capsys.readouterr().out
    assert "PyTorch example, seed 2, float32" in out
    assert "speed-up" in out
    assert is_picture(tmp_path / "out" / "migration.png")
    for program in json.loads(numbers.read_text())["programs"]:
        assert [run["dtype"] for run in program["curves"]] == ["float32", "float32", "float64"]
        assert [cost["pixels"] for cost in program["costs"]] == [64, 784]
        for cost in program["costs"]:
            assert 0 < cost["loss"]["before_bytes"] < cost["step"]["before_bytes"]
            assert 0 < cost["loss_share"] < 1


@pytest.mark.parametrize("options", [["--seeds", "0"], ["--epochs", "0"], ["--rounds", "1"]])
def test_script_refuses_what_it_cannot_do(migration, options, capsys):
    with pytest.raises(SystemExit):
        migration.main(options)
    assert "must be at least" in capsys.readouterr().err


def test_committed_curves_coincide():
    """Further apart than a few steps are, since Adam magnifies rounding: 1 % of a seed's luck."""
    results = json.loads((ROOT / "results" / "cpu-amd-epyc" / "migration.json").read_text())
    for program in results["programs"]:
        single = [run for run in program["curves"] if run["dtype"] == "float32"]
        last = torch.tensor([run["before"][-1] for run in single])
        assert len(single) >= 5
        for run in single:
            assert abs(run["before"][-1] - run["after"][-1]) < 0.01 * last.std()
