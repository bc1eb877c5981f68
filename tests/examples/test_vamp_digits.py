"""examples/vamp_digits.py: its priors, what it measures, and the published mistakes."""

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import special, stats

from fused_elbo import gaussian_rsample, mixture_log_prob
from helpers.samples import normal
from helpers.scripts import EXAMPLES, is_picture

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vamp_digits():
    """The script as a module; it imports its neighbours, as a script can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import vamp_digits

        yield vamp_digits


@pytest.fixture(scope="module")
def images(vamp_digits):
    return vamp_digits.load_digits_binary()[0]


def model_of(vamp_digits, prior, images, device="cpu", components=5):
    torch.manual_seed(3)
    return vamp_digits.PriorVAE(prior, components, images, latents=3, hidden=16).to(device)


def test_priors_start_from_the_same_networks(vamp_digits, images):
    models = [model_of(vamp_digits, prior, images) for prior in vamp_digits.PRIORS]
    for name, parameter in models[0].named_parameters():
        for model in models[1:]:
            assert torch.equal(parameter, model.get_parameter(name))
    assert [m.parameters_of_prior() for m in models] == [0, 5 * (3 + 3), 5 * 64]


def test_a_vamp_priors_components_are_q_of_its_pseudo_inputs(vamp_digits, images):
    """The pseudo-inputs start half way between images and grey."""
    model = model_of(vamp_digits, "VampPrior", images)
    assert all((images == x.round()).all(1).any() for x in model.pseudo_inputs.sigmoid())
    for found, expected in zip(
        model.mixture()[:2], model.encode(torch.sigmoid(model.pseudo_inputs)), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("prior", ["standard", "mixture", "VampPrior"])
def test_loss_is_the_elbos_and_all_parameters_learn(vamp_digits, images, prior, monkeypatch):
    """At the z that the loss draws; with the KL from it, or in closed form."""
    model, x = model_of(vamp_digits, prior, images).double(), images[:20].double()
    drawn = []
    monkeypatch.setattr(model, "decode", lambda z: drawn.append(z) or model.decoder(z))
    loss = vamp_digits.negative_elbo(model, x, "reference")
    q = [t.detach() for t in model.encode(x)]
    of_q = torch.distributions.Normal(q[0], (0.5 * q[1]).exp())
    (z,), nats = drawn, torch.distributions.Bernoulli(logits=model.decoder(drawn[0]))
    if prior == "standard":
        standard = torch.distributions.Normal(torch.zeros(3, dtype=F64), 1.0)
        kl = torch.distributions.kl_divergence(of_q, standard).sum(-1)
    else:
        kl = of_q.log_prob(z).sum(-1) - mixture_log_prob(z, *model.mixture(), impl="reference")
    torch.testing.assert_close(loss, (kl - nats.log_prob(x).sum(-1)).mean())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("prior", ["standard", "mixture", "VampPrior"])
def test_samples_of_a_prior_have_its_moments(vamp_digits, images, prior):
    """To four standard errors, of 4,000 samples."""
    model, count = model_of(vamp_digits, prior, images), 4000
    z = model.sample(count, torch.Generator().manual_seed(0)).detach()
    mean, logvar = (t if t is None else t.detach() for t in vamp_digits.moments(model.mixture()))
    mean, variance = (torch.zeros(3), torch.ones(3)) if mean is None else (mean, logvar.exp())
    assert ((z.mean(0) - mean).abs() < 4 * z.std(0) / math.sqrt(count)).all()
    error = (z - z.mean(0)).square().std(0) / math.sqrt(count)
    assert ((z.var(0) - variance).abs() < 4 * error).all()


def test_scores_have_noise_of_their_own(vamp_digits, images):
    """Measuring twice gives the same, and leaves the noise of training as it was."""
    model, x = model_of(vamp_digits, "VampPrior", images), images[:30]
    state = torch.get_rng_state()
    score = vamp_digits.evaluate(model, x, 40)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert vamp_digits.evaluate(model, x, 40) == score
    assert -60 < score.elbo < score.log_likelihood < -30, "64 log 2 = 44, untrained"


def posterior(examples, cols):
    mu, logvar = normal(examples, cols, seed=1), -1 + 0.5 * normal(examples, cols, seed=2)
    z = mu + torch.exp(0.5 * logvar) * normal(examples, cols, seed=3)
    return z, mu, logvar


def pairs_by_scipy(z, mu, logvar):
    z, mu, logvar = (t.numpy() for t in (z, mu, logvar))
    return stats.norm.logpdf(z[:, None], mu, np.exp(0.5 * logvar))


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_published_estimates_are_the_published_ones(vamp_digits, batch):
    """Their weights as they fill them, in steps through the flat matrix; the rest by scipy."""
    z, mu, logvar = posterior(batch, 3)
    size, others = 100, batch - 1
    weights = np.full(batch * batch, 1 / others)
    weights[0 :: others + 1] = 1 / size
    weights[1 :: others + 1] = (size - others) / (size * others)
    weights = weights.reshape(batch, batch)
    weights[others - 1, 0] = (size - others) / (size * others)
    pairs, log_weights = pairs_by_scipy(z, mu, logvar), np.log(weights)
    marginals = special.logsumexp(pairs + log_weights[..., None], axis=1).sum(-1)
    once = special.logsumexp(pairs.sum(-1) + log_weights, axis=1) - marginals
    each = special.logsumexp((pairs + log_weights[..., None]).sum(-1), axis=1) - marginals
    found = vamp_digits.misplaced_weights(z, mu, logvar, size)
    torch.testing.assert_close(found, torch.from_numpy(once))
    found = vamp_digits.repeated_weights(z, mu, logvar, size)
    torch.testing.assert_close(found, torch.from_numpy(each))


def test_exact_total_correlation(vamp_digits, images, monkeypatch):
    """scipy agrees for the images in whole batches and the q(z) of all; both see the same z."""
    model, x = model_of(vamp_digits, "standard", images).double(), images[:50].double()
    state = torch.get_rng_state()
    found = vamp_digits.total_correlations(model, x, 8)
    assert torch.equal(torch.get_rng_state(), state)
    mu, logvar = (t.detach() for t in model.encode(x))
    generator = torch.Generator().manual_seed(0)
    z = gaussian_rsample(mu[:48], logvar[:48], generator=generator)
    pairs = pairs_by_scipy(z, mu, logvar)
    exact = special.logsumexp(pairs.sum(-1), axis=1) - math.log(50)
    exact -= (special.logsumexp(pairs, axis=1) - math.log(50)).sum(-1)
    assert found["exact"] == pytest.approx(exact.mean(), rel=1e-9)
    once = [vamp_digits.misplaced_weights(z[i : i + 8], mu[i : i + 8], logvar[i : i + 8], 50)
            for i in range(0, 48, 8)]  # fmt: skip
    assert found["rtqichen, pythae"] == pytest.approx(torch.cat(once).mean().item(), rel=1e-9)
    assert abs(found["stratified"] - found["exact"]) < 0.1
    assert found["weighted"] > 2 * math.log(50) - 1
    assert found["YannDubs, AntixK"] < -2


def test_script_writes_picture_table_and_numbers(
    vamp_digits, images, tmp_path, capsys, monkeypatch
):
    few = images[:60], images[60:90]
    monkeypatch.setattr(vamp_digits, "load_digits_binary", lambda: few)
    tiny = "--epochs 1 --tc-epochs 2 --tc-batch 20 --batch 30 --hidden 8 --latents 2 --seeds 2"
    tiny += " --components 4 --bound-samples 30 --device cpu --betas 2 5"
    vamp_digits.main([*tiny.split(), "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert is_picture(tmp_path / "vamp_digits.png")
    found = json.loads((tmp_path / "vamp_digits.json").read_text())
    for prior in vamp_digits.PRIORS:
        values = [score["log_likelihood"] for score in found["priors"][prior]["scores"]]
        (mean,) = re.findall(rf"│ {prior} +│ +\d+ │ +(-[\d.]+) ±", out)
        assert float(mean) == pytest.approx(sum(values) / 2, abs=0.006)
    assert [curve["beta"] for curve in found["total_correlation"]] == [2, 5]
    for curve in found["total_correlation"]:
        assert curve["epoch"] == [0, 1, 2]
        exact, off = curve["exact"][-1], curve["weighted"][-1] - curve["exact"][-1]
        row = rf"│ +{curve['beta']:g} │ +{exact:.2f} │[^│]+│ +\+{off:.2f} │"
        assert re.search(row, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "0"), "argument --seeds: must be at least 1, got 0"),
        (("--components", "0"), "argument --components: must be at least 1"),
        (("--tc-batch", "1"), "--tc-batch must be 2 to 1437"),
        (("--tc-batch", "359"), "leave no single image over, got 359"),
        (("--device", "meta", "--impl", "numba"), "needs CPU tensors"),
    ],
)
def test_script_refuses_what_cannot_work(vamp_digits, capsys, options, message):
    with pytest.raises(SystemExit):
        vamp_digits.parse(options)
    assert message in capsys.readouterr().err
