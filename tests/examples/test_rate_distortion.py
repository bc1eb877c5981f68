"""examples/rate_distortion.py: its loss is what it says, and its curve has the slope of theory."""

import re

import pytest
import torch
from matplotlib.figure import Figure
from torch.distributions import Bernoulli, Normal, kl_divergence

from helpers.scripts import EXAMPLES, is_picture, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rate_distortion():
    """The script as a module; it imports its neighbour, as a script can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import rate_distortion

        yield rate_distortion


@pytest.fixture(scope="module")
def images(rate_distortion):
    return rate_distortion.load_digits_binary()


def model_of(rate_distortion):
    torch.manual_seed(3)
    return rate_distortion.VAE(latents=5, hidden=16).double()


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_loss_is_the_textbooks(rate_distortion, images, beta):
    """-log p(x|z) + beta KL by torch.distributions, at the reference's noise; gradients too."""
    model, x = model_of(rate_distortion), images[0][:20].double()
    torch.manual_seed(7)
    loss = rate_distortion.beta_loss(model, x, "reference", beta=beta)
    torch.manual_seed(7)
    mu, logvar = model.encode(x)
    q = Normal(mu, (0.5 * logvar).exp())
    z = mu + q.stddev * torch.randn_like(mu)
    nll = -Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
    wanted = (nll + beta * kl_divergence(q, Normal(0.0, 1.0)).sum(-1)).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    pairs = (torch.autograd.grad(value, parameters) for value in (loss, wanted))
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_points_have_noise_of_their_own(rate_distortion, images):
    """Measuring twice gives the same, leaves training's noise alone, and has the exact KL."""
    model, x = model_of(rate_distortion), images[1][:50].double()
    state = torch.get_rng_state()
    point = rate_distortion.measure(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert rate_distortion.measure(model, x) == point
    mu, logvar = model.encode(x)
    kl = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1).mean()
    assert point.rate == pytest.approx(kl.item())
    assert 40 < point.distortion < 50  # 64 log 2, untrained


def test_slopes_of_a_known_curve(rate_distortion):
    """On D = 3 / R the chord from R = 1 to R = 3 has slope -1."""
    curve = {
        beta: rate_distortion.Point(rate, 3 / rate, 1)
        for beta, rate in ((3.0, 1.0), (0.75, 2.0), (1 / 3, 3.0))
    }
    assert rate_distortion.slopes(curve) == {0.75: pytest.approx(-1.0)}


def test_tangent_has_slope_one_and_keeps_the_elbo(rate_distortion):
    axes = Figure().subplots()
    rate_distortion.show_tangent(axes, rate_distortion.Point(4.5, 19.0, 8))
    (line,) = axes.lines
    (x0, x1), (y0, y1) = line.get_data()
    assert (y1 - y0) / (x1 - x0) == pytest.approx(-1.0)
    assert x0 + y0 == pytest.approx(23.5)
    assert x0 < 4.5 < x1
    assert "ELBO = -23.50" in line.get_label()


@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
def test_curve_trades_the_likelihood_for_the_kl(rate_distortion, images, optimizer):
    """Along it KL falls and -log p(x|z) rises, steeper than -1 above beta = 1 and flatter below.

    At beta = 8 z says nothing: no latent is active, and the decoder is left with the mean image.
    """
    train, test = images
    args = rate_distortion.parse(["--epochs", "25", "--hidden", "64", "--device", "cpu"])
    betas = (0.25, 1.0, 2.0, 8.0)
    models = [rate_distortion.fit(optimizer, beta, train, args) for beta in betas]
    points = [rate_distortion.measure(model, test) for model in models]
    rates, distortions, active = zip(*points, strict=True)
    assert list(rates) == sorted(rates, reverse=True)
    assert list(distortions) == sorted(distortions)
    assert active[0] == 8
    assert active[-1] == 0
    assert rates[-1] < 0.05
    below, above = (
        (distortions[i + 1] - distortions[i]) / (rates[i + 1] - rates[i]) for i in (0, 1)
    )
    assert -1 < below < -0.25
    assert -2 < above < -1
    elbos = [-rate - distortion for rate, distortion, _ in points]
    assert max(elbos) == elbos[1]


def test_script_draws_and_prints(tmp_path):
    tiny = [
        "--epochs",
        "1",
        "--batch",
        "500",
        "--hidden",
        "16",
        "--latents",
        "3",
        "--device",
        "cpu",
    ]
    result = run("rate_distortion", *tiny, "--betas", "0.1", "1", "4", "--out", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert is_picture(tmp_path / "rate_distortion.png")
    for name in ("Adam", "SGD"):
        for beta in ("0.1", "1", "4"):
            assert re.search(rf"│ {name} +│ +{re.escape(beta)} │", result.stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--betas", "0"], "must be positive, got 0"),
        (["--betas", "1", "nan"], "must be positive, got nan"),
        (["--epochs", "0"], "must be at least 1, got 0"),
    ],
)
def test_script_refuses_what_cannot_work(rate_distortion, capsys, options, message):
    with pytest.raises(SystemExit):
        rate_distortion.parse(options)
    assert message in capsys.readouterr().err
