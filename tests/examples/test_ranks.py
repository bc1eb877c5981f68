"""examples/vae_digits.py in several processes: helpers/ranks.py runs on each of two ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fused_elbo
from helpers.machine import KERNELS, ON_GPU
from helpers.ranks import BATCH, gradients, options, seeded
from helpers.scripts import EXAMPLES, load

IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])

pytestmark = pytest.mark.usefixtures("one_thread")


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--nproc-per-node", "2", *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder that two ranks wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("-m", "helpers.ranks", folder)
    return folder


# One place is enough: what the ranks do does not depend on where the kernels of a test run.
@pytest.mark.skipif(ON_GPU, reason="gloo on a CPU, tested where kernels are interpreted")
class TestRanks:
    @IMPLS
    def test_gradients_are_those_of_the_joined_batch(self, impl, ranks, monkeypatch):
        """One process on all images, with the noise that the ranks drew."""
        vae_digits = load("vae_digits")
        steps = [torch.load(ranks / f"{impl}-{rank}.pt") for rank in range(2)]
        noise = []
        for step in steps:
            torch.set_rng_state(step["state"])
            zero = torch.zeros(BATCH // 2, 4)
            noise.append(fused_elbo.gaussian_rsample(zero, zero, impl=impl))
        assert (noise[0] != noise[1]).all()
        monkeypatch.setattr(
            "fused_elbo.estimators.reference.reference.standard_normal", lambda *_: torch.cat(noise)
        )
        index = torch.cat([step["index"] for step in steps])
        assert len(index.unique()) == BATCH
        model, train = seeded(vae_digits), vae_digits.load_digits_binary()[0]
        vae_digits.negative_elbo(model, train[index], impl="reference").backward()
        for step in steps:
            torch.testing.assert_close(step["gradients"], gradients(model), rtol=1e-5, atol=1e-6)

    def test_each_rank_starts_from_a_seed_of_its_own(self, ranks):
        """Not seed + rank: those are the states that this run's weights and the next's are of."""
        starts = [torch.load(ranks / f"reference-{rank}.pt")["start"] for rank in range(2)]
        seeds = [torch.Generator().manual_seed(seed).get_state() for seed in range(2)]
        assert len({tuple(state.tolist()) for state in (*starts, *seeds)}) == 4

    def test_an_epoch_is_shared_out(self, ranks):
        """Evenly at every step, without the one image too many, and no image twice."""
        shares = [torch.load(ranks / f"shares-{rank}.pt") for rank in range(2)]
        for steps in shares:
            assert [len(x) for x in steps] == [8] * 6 + [2]
        assert len(torch.cat([x for steps in shares for x in steps]).unique()) == 100

    def test_a_resumed_run_is_the_whole_run(self, ranks):
        """To the last bit: two epochs by torchrun, and two with a break between them."""
        printed = torchrun(EXAMPLES / "vae_digits.py", *options(ranks, 2, "whole.pt"))
        assert printed.count("epoch   2") == 1  # one rank talks
        whole, resumed = (torch.load(ranks / name) for name in ("whole.pt", "resumed.pt"))
        assert len(whole["elbos"]) == 2
        assert whole["elbos"] == resumed["elbos"]
        for name, parameter in whole["model"].items():
            assert torch.equal(parameter, resumed["model"][name])
        for state, other in zip(whole["states"], resumed["states"], strict=True):
            assert torch.equal(state, other)
        assert not torch.equal(*whole["states"])
