"""examples/bayesian_linear_regression.py: fits reach the exact optimum, and never exceed it."""

import math
import re

import pytest
import torch
from matplotlib.figure import Figure

from helpers.scripts import is_picture, load, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def regression():
    return load("bayesian_linear_regression")


@pytest.mark.parametrize("name", ["elbo-entropy", "stl"])
def test_exact_elbo_rises_to_its_optimum(regression, name):
    """To within 0.1 nats: over ten seeds the rest is at most 0.021 (entropy), 0.063 (STL).

    And never over it, so never over the log evidence, 3.81 nats above.
    """
    model = regression.diabetes_model()
    optimum = model.elbo(model.optimal_diagonal()).item()
    elbos = list(regression.fit(model, name, steps=1000, lr=0.2))
    assert max(elbos) <= optimum + 1e-9
    assert max(elbos) <= model.log_evidence().item()
    assert elbos[0] < optimum - 1000
    assert elbos[-1] > optimum - 0.1


def test_no_estimator_lifts_the_elbo_over_its_optimum(regression):
    """Whatever bound is climbed, and however noisily: 100 steps at a learning rate too large."""
    model = regression.diabetes_model()
    optimum = model.elbo(model.optimal_diagonal()).item()
    for name in regression.FITTING:
        elbos = list(regression.fit(model, name, samples=4, steps=100, lr=0.5))
        assert max(elbos) <= optimum + 1e-9, name
        if regression.ESTIMATORS[name].bound == "ELBO":
            assert elbos[-1] > elbos[0], name


def test_regression_is_on_the_standardised_diabetes_data(regression):
    """442 patients, an intercept and ten measurements; R^2 of least squares is 0.518."""
    model = regression.diabetes_model()
    assert model.design.shape == (442, 11)
    assert torch.equal(model.design[:, 0], torch.ones(442, dtype=torch.float64))
    moments = torch.stack([model.design[:, 1:].mean(0), model.design[:, 1:].std(0, correction=0)])
    assert (moments - torch.tensor([[0.0], [1.0]])).abs().max() < 1e-12
    assert 1 - model.noise_variance * (442 - 11) / 442 == pytest.approx(0.518, abs=5e-4)


def test_slope_and_intercept_before_and_after_data(regression):
    """The prior, then ever less of it; least squares is in the posterior's 95 % once it exists."""
    models = [regression.simple_model(n) for n in regression.PATIENTS]
    areas = [m.posterior().covariance.det().sqrt().item() for m in models]
    assert areas[0] == 1.0
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] < 0.005
    for model in models[1:]:
        mean, covariance = model.posterior()
        away = regression.least_squares(model.design, model.targets) - mean
        assert away @ covariance.inverse() @ away < -2 * math.log(0.05)
        assert model.mean_field_gap() > 0.3
    curve = regression.ellipse(models[1].posterior()) - models[1].posterior().mean[:, None]
    squares = (curve * torch.linalg.solve(models[1].posterior().covariance, curve)).sum(0)
    torch.testing.assert_close(squares, torch.full((200,), -2 * math.log(0.05)).double())


def test_bars_stack_up_to_the_evidence(regression):
    """log p(y) = ELBO + KL(q || posterior), drawn and printed."""
    for patients in regression.PATIENTS:
        model = regression.simple_model(patients)
        axes = Figure().subplots()
        regression.draw_evidence(axes, model)
        lower, upper = (bar.get_bbox() for bar in axes.patches)
        q = model.optimal_diagonal()
        divergence = regression.kl_divergence(regression.as_full(q), model.posterior()).item()
        assert lower.y1 == pytest.approx(upper.y0)
        assert upper.y1 == pytest.approx(model.log_evidence().item())
        assert upper.height == pytest.approx(divergence, abs=1e-6)


def test_regression_script_draws_and_explains_the_gap(tmp_path):
    options = ["--estimators", "stl", "dreg", "--steps", "20", "--out", str(tmp_path)]
    result = run("bayesian_linear_regression", *options)
    assert result.returncode == 0, result.stderr
    assert re.search(r"stl +│ ELBO", result.stdout)
    assert re.search(r"dreg +│ IWAE", result.stdout)
    assert re.search(r"exact optimum +│ ELBO +│ +-503\.785 │ +0\.000 │ +3\.806", result.stdout)
    assert re.search(r"log evidence +│ +│ +-499\.979", result.stdout)
    assert "need not end at the ELBO's optimum" in result.stdout
    assert is_picture(tmp_path / "bayesian_linear_regression.png")
    assert is_picture(tmp_path / "slope_and_intercept.png")
    row = r"442 │ +0\.66 │ 0\.66 ± 0\.04 │ 0\.66 ± 0\.02 │ -541\.55 │ 0\.56 │ +-540\.99"
    assert re.search(row, result.stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--estimators", "reinforce", "--samples", "1"), "reinforce needs num_samples >= 2"),
        (("--estimators", "cubo"), "invalid choice: 'cubo'"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
    ],
)
def test_regression_script_refuses_what_cannot_work(regression, capsys, options, message):
    with pytest.raises(SystemExit):
        regression.parse(options)
    assert message in capsys.readouterr().err
