"""examples/iwae_digits.py: its three losses are what they say, and every way to run them agrees."""

import re

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence
from torch.nn.utils import parameters_to_vector

from fused_elbo import iwae_loss, rsample_log_ratio
from fused_elbo.estimators.reference import noise, reference
from helpers.machine import KERNELS
from helpers.scripts import EXAMPLES, is_picture, run

TINY = ["--epochs", "1", "--batch", "500", "--hidden", "16", "--latents", "3"]
TINY += ["--bound-samples", "30", "--device", "cpu"]
METHODS = ("ELBO", "IWAE", "DReG")
SAMPLES = 5
# With a chunk size, or None for all samples at once, as the ELBO is always trained.
LOSSES = [("ELBO", None), ("IWAE", None), ("IWAE", 2), ("DReG", None), ("DReG", 2)]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def iwae_digits():
    """The script as a module; it imports its neighbour, as a script can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import iwae_digits

        yield iwae_digits


@pytest.fixture
def stream_noise(monkeypatch):
    """Let the reference draw what kernels and chunks draw; ``shift``: what other seeds give."""

    def patch(shift=0):
        def standard_normal(shape, like, generator=None):
            seed = int(noise.draw_seed(like.device, generator)) ^ shift
            return noise.stream(seed, *shape).to(like)

        monkeypatch.setattr(reference, "standard_normal", standard_normal)

    return patch


@pytest.fixture(scope="module")
def images(iwae_digits):
    return iwae_digits.load_digits_binary()[0][:200]


def model_of(iwae_digits, dtype=torch.float64, device="cpu"):
    torch.manual_seed(3)
    return iwae_digits.VAE(latents=5, hidden=16).to(device, dtype)


def textbook(method, model, x, eps):
    """The value and the gradient, by torch.distributions and autograd alone."""
    mu, logvar = model.encode(x)
    q, prior = Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    z = q.mean + q.stddev * eps
    log_likelihood = Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
    log_weights = log_likelihood + (prior.log_prob(z) - q.log_prob(z)).sum(-1)
    if method == "ELBO":
        kl = kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
        value = surrogate = kl.mean() - log_likelihood.mean()
    else:
        value = surrogate = -log_weights.exp().mean(0).log().mean()
    if method == "DReG":
        # Tucker et al. 2019, eq. 8: v_k squared on the path through z, for the encoder;
        # v_k, as ever, for the decoder, which sees z as a constant.
        weights = log_weights.softmax(0).detach()
        held = Normal(q.mean.detach(), q.stddev.detach())
        fixed = torch.func.functional_call(
            model.decoder, {n: p.detach() for n, p in model.decoder.named_parameters()}, z
        )
        path = Bernoulli(logits=fixed).log_prob(x).sum(-1)
        path = path + (prior.log_prob(z) - held.log_prob(z)).sum(-1)
        at_constant = Bernoulli(logits=model.decode(z.detach())).log_prob(x).sum(-1)
        surrogate = -(weights.square() * path + weights * at_constant).sum(0).mean()
    return value.detach(), gradient_of(surrogate, model)


def gradient_of(loss, model):
    return parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(("method", "chunk_size"), LOSSES)
def test_losses_and_gradients_are_the_textbooks(
    iwae_digits, images, stream_noise, method, chunk_size
):
    model, x = model_of(iwae_digits), images[:20].double()
    stream_noise()
    torch.manual_seed(7)
    eps = reference.standard_normal((SAMPLES, 20, 5), x)
    value, gradient = textbook(method, model, x, eps)
    torch.manual_seed(7)
    loss = iwae_digits.loss_of(method, SAMPLES, chunk_size)(model, x, impl="reference")
    torch.testing.assert_close(loss.detach(), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient_of(loss, model), gradient, rtol=1e-10, atol=1e-12)


def test_one_sample_makes_iwae_an_elbo_and_dreg_sticking_the_landing(iwae_digits, images):
    """Both values are the ELBO with a Monte Carlo KL; DReG's gradient is that of the path."""
    model, x = model_of(iwae_digits), images[:20].double()

    def one_sample(gradient):
        torch.manual_seed(7)
        z, log_ratio = rsample_log_ratio(*model.encode(x), 1, gradient=gradient)
        return z, log_ratio, iwae_loss(model.decode(z), x, log_ratio)

    z, log_ratio, total = one_sample("total")
    elbo = log_ratio.mean() + Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1).mean()
    gradients = {}
    for method in ("IWAE", "DReG"):
        torch.manual_seed(7)
        loss = iwae_digits.loss_of(method, 1)(model, x)
        torch.testing.assert_close(loss, -elbo, rtol=1e-12, atol=0)
        gradients[method] = gradient_of(loss, model)
    path = gradient_of(one_sample("path")[2], model)
    torch.testing.assert_close(gradients["DReG"], path, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients["IWAE"], gradient_of(total, model))
    assert (gradients["IWAE"] - path).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss(iwae_digits, method):
    train, _ = iwae_digits.load_digits_binary()
    torch.manual_seed(0)
    model = iwae_digits.VAE(hidden=64)
    losses = list(iwae_digits.fit(model, train, iwae_digits.loss_of(method, 4), 0, epochs=5))
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 5


@pytest.mark.parametrize("method", ["IWAE", "DReG"])
def test_chunks_train_along_the_same_losses(iwae_digits, images, stream_noise, method):
    """In float64: Adam divides by the size of a gradient, and would blow up float32's last bit."""
    stream_noise()

    def losses(chunk_size):
        model = model_of(iwae_digits)
        loss = iwae_digits.loss_of(method, 8, chunk_size)
        fit = iwae_digits.fit(model, images.double(), loss, 0, epochs=3, impl="reference")
        return torch.tensor(list(fit))

    whole = losses(None)
    torch.testing.assert_close(losses(3), whole, rtol=1e-7, atol=0)
    torch.testing.assert_close(losses(8), whole, rtol=1e-7, atol=0)
    stream_noise(shift=1)
    assert (losses(None) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("method", "chunk_size"), LOSSES)
def test_kernels_and_reference_train_alike(
    iwae_digits, images, stream_noise, device, method, chunk_size
):
    """To float32 accuracy, in three steps of SGD, which is linear in the gradient."""
    x = images[:30].to(device)
    loss = iwae_digits.loss_of(method, 3, chunk_size)

    def trained(impl):
        model = model_of(iwae_digits, torch.float32, device)
        before = parameters_to_vector(model.parameters()).detach()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(0)
        for batch in x.split(10):
            iwae_digits.train_step(model, optimizer, batch, impl, loss)
        return parameters_to_vector(model.parameters()).detach(), before

    kernels, before = trained(KERNELS)
    stream_noise()
    same, _ = trained("reference")
    assert (kernels - same).abs().max() <= 1e-6
    assert (kernels - before).abs().max() > 0.05


def test_methods_see_the_same_batches(iwae_digits, images):
    def batches(method, samples):
        seen, loss = [], iwae_digits.loss_of(method, samples)

        def recorded(model, x, impl):
            seen.append(x)
            return loss(model, x, impl=impl)

        model = model_of(iwae_digits, torch.float32)
        list(iwae_digits.fit(model, images, recorded, seed=4, epochs=2, batch=64))
        return torch.cat(seen)

    first = batches("ELBO", 1)
    assert len(first) == 2 * len(images)
    assert not torch.equal(first[: len(images)], first[len(images) :])
    assert torch.equal(first, batches("DReG", 8))


def test_scores_have_noise_of_their_own(iwae_digits, images):
    """Measuring twice gives the same, and leaves the noise of training as it was."""
    model = model_of(iwae_digits, torch.float32)
    state = torch.get_rng_state()
    score = iwae_digits.evaluate(model, images, 40, 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert iwae_digits.evaluate(model, images, 40, 1.0) == score
    assert score.gap == score.log_likelihood - score.elbo
    assert 1 <= score.ess <= iwae_digits.TEST_SAMPLES


def test_standard_errors_and_paired_differences(iwae_digits):
    """The differences 1 and 3 have a mean of 2 and a standard error of 1."""
    scores = {
        ("IWAE", 8): [iwae_digits.Score(v, 0, 0, 0, 0, 0) for v in (-20.0, -27.0)],
        ("ELBO", 8): [iwae_digits.Score(v, 0, 0, 0, 0, 0) for v in (-21.0, -30.0)],
    }
    assert iwae_digits.difference(scores, 8, "IWAE", "ELBO") == pytest.approx((2.0, 1.0))
    assert iwae_digits.over_seeds(scores, "IWAE", "log_likelihood")[8] == pytest.approx(
        (-23.5, 3.5)
    )
    assert iwae_digits.text(*iwae_digits.mean_and_error([1.5])) == "1.50"


def rows_of(out):
    """The table's rows {(method, K): log p(x)}, as printed."""
    found = re.findall(r"│ +(\d+) │ (ELBO|IWAE|DReG) +│ +(-[\d.]+)", out)
    return {(method, int(samples)): float(value) for samples, method, value in found}


def test_script_writes_picture_and_table(tmp_path):
    options = [*TINY, "--samples", "2", "1", "--seeds", "2", "--out", str(tmp_path)]
    result = run("iwae_digits", *options)
    assert result.returncode == 0, result.stderr
    rows = rows_of(result.stdout)
    assert list(rows) == [(method, samples) for samples in (1, 2) for method in METHODS]
    for (method, samples), mean in rows.items():
        line = rf"seed \d, {method}, K = {samples} .*log p\(x\) +(-[\d.]+)"
        of_seeds = [float(value) for value in re.findall(line, result.stdout)]
        assert len(of_seeds) == 2
        assert mean == pytest.approx(sum(of_seeds) / 2, abs=0.011)
    assert re.search(r"IWAE - ELBO.*\n.*\n│ +1 │ +-?[\d.]+ ± [\d.]+ │", result.stdout)
    assert is_picture(tmp_path / "iwae_digits.png")


def test_script_trains_in_chunks_with_the_kernels(
    iwae_digits, images, tmp_path, capsys, monkeypatch, device
):
    """On a few images and samples: interpreted, each kernel takes its time."""
    monkeypatch.setattr(iwae_digits, "load_digits_binary", lambda: (images[:20], images[20:30]))
    monkeypatch.setattr(iwae_digits, "TEST_SAMPLES", 4)
    options = [*TINY, "--samples", "3", "--seeds", "1", "--chunk-size", "2"]
    options += ["--device", device, "--impl", KERNELS, "--out", str(tmp_path)]
    iwae_digits.main(options)
    out = capsys.readouterr().out
    assert list(rows_of(out)) == [(method, 3) for method in METHODS]
    assert "±" not in out, "one seed has no standard error"
    assert is_picture(tmp_path / "iwae_digits.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--bound-samples", "0"), "--bound-samples must be at least 1, got 0"),
        (("--samples", "0"), "num_samples"),
        (("--chunk-size", "0"), "chunk_size"),
    ],
)
def test_script_refuses_what_cannot_work(iwae_digits, capsys, options, message):
    with pytest.raises(SystemExit):
        iwae_digits.parse([*options, "--device", "cpu"])
    assert message in capsys.readouterr().err
