"""examples/single_cell.py: simulated cells, three likelihoods, and one written twice."""

import pytest
import torch

from helpers.scripts import is_picture, load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def single_cell():
    return load("single_cell")


def test_cells_are_overdispersed_and_mostly_zeros(single_cell):
    """Var x = mu + mu^2 / theta, for one type and without differences of libraries."""
    x, types, theta = single_cell.simulate(3000, 200, seed=1)
    assert x.shape == (3000, 200)
    assert set(types.tolist()) == set(range(single_cell.TYPES))
    assert (x == x.round()).all()
    share = x / x.sum(1, keepdim=True).clamp(min=1) * x.sum(1).mean()
    of_type = share[types == 0]
    mean, variance = of_type.mean(0), of_type.var(0)
    many = (mean > 2) & (variance > mean)
    excess = (variance - mean)[many] / mean[many] ** 2
    assert many.sum() > 10
    assert torch.corrcoef(torch.stack((excess.log(), -theta[many].log())))[0, 1] > 0.5
    assert torch.equal(x, single_cell.simulate(3000, 200, seed=1)[0])


def test_both_implementations_are_one_loss(single_cell):
    x, _, _ = single_cell.simulate(20, 30)
    output = torch.randn(20, 30)
    losses = []
    for likelihood in ("negative binomial", single_cell.TEXTBOOK):
        torch.manual_seed(0)
        model = single_cell.CountVAE(likelihood, 30)
        loss = model.nll(output, x)
        losses.append((loss, *torch.autograd.grad(loss, model.log_theta)))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def test_it_learns_and_draws(single_cell, tmp_path):
    found = single_cell.run(4, cells=400, test_cells=100, genes=60)
    for likelihood in (*single_cell.LIKELIHOODS, single_cell.TEXTBOOK):
        curve = [nats for _, nats in found[likelihood]["curve"]]
        assert curve[-1] < curve[0]
    assert found["negative binomial"]["nats"] < found["poisson"]["nats"]
    single_cell.draw(found).savefig(tmp_path / "picture.png")
    assert is_picture(tmp_path / "picture.png")
