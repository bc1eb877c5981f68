"""iwae_loss: values and gradients against the textbook; the whole step compiles."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from fused_elbo import (
    bernoulli_nll,
    chunked_iwae_loss,
    elbo_loss,
    gaussian_nll,
    iwae_loss,
    rsample_log_ratio,
)
from fused_elbo.kernels.triton import launch
from helpers.machine import KERNELS
from helpers.samples import IMPLS, at_seed, normal

F32, F64 = torch.float32, torch.float64


def textbook_iwae(recon, x, log_ratio, likelihood, recon_logvar, alpha):
    """[B], from torch's own losses."""
    x = x.expand_as(recon)
    if likelihood == "bernoulli":
        nll = F.binary_cross_entropy_with_logits(recon, x, reduction="none")
    else:
        variance = torch.as_tensor(recon_logvar, dtype=recon.dtype, device=recon.device)
        variance = variance.exp().expand_as(recon)
        nll = F.gaussian_nll_loss(recon, x, variance, full=True, reduction="none", eps=0)
    log_weights = log_ratio - nll.flatten(2).sum(2)
    if alpha == 1:
        return -log_weights.mean(0)
    order = 1 - alpha
    return -(torch.logsumexp(order * log_weights, 0) - math.log(len(recon))) / order


LIKELIHOODS = {
    "bernoulli": ("bernoulli", lambda: 0.0),
    "gaussian": ("gaussian", lambda: -0.7),
    "gaussian, learned": ("gaussian", lambda: torch.tensor(-0.7, dtype=F64, requires_grad=True)),
    "gaussian, per element": (
        "gaussian",
        lambda: normal(3, 4, 2, 5, seed=9).requires_grad_(),
    ),
}


class TestLoss:
    @pytest.mark.parametrize("name", LIKELIHOODS)
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @IMPLS
    def test_against_the_textbook(self, name, alpha, reduction, impl, device):
        likelihood, make = LIKELIHOODS[name]
        recon_logvar = make()
        learned = isinstance(recon_logvar, torch.Tensor)
        if learned:
            recon_logvar = recon_logvar.detach().to(device).requires_grad_()
        recon = normal(3, 4, 2, 5, device=device).requires_grad_()
        x, log_ratio = torch.rand(4, 2, 5, dtype=F64), normal(3, 4, device=device)
        x, log_ratio = x.to(device).requires_grad_(), log_ratio.requires_grad_()
        leaves = [recon, x, log_ratio, *([recon_logvar] if learned else [])]
        loss = iwae_loss(
            recon,
            x,
            log_ratio,
            likelihood=likelihood,
            recon_logvar=recon_logvar,
            alpha=alpha,
            reduction=reduction,
            impl=impl,
        )
        expected = textbook_iwae(recon, x, log_ratio, likelihood, recon_logvar, alpha)
        expected = expected if reduction == "none" else getattr(expected, reduction)()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        weight = normal(*loss.shape, seed=6, device=device)
        gradients = torch.autograd.grad(loss, leaves, weight)
        wanted = torch.autograd.grad(expected, leaves, weight)
        for a, b in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    @IMPLS
    def test_parts(self, impl, device):
        recon, x = normal(3, 4, 5, device=device), torch.rand(4, 5, dtype=F64).to(device)
        log_ratio = normal(3, 4, device=device).requires_grad_()
        loss, log_weights, weights, ess = iwae_loss(
            recon, x, log_ratio, return_parts=True, impl=impl
        )
        assert loss.requires_grad
        assert not any(t.requires_grad for t in (log_weights, weights, ess))
        expected = log_ratio - bernoulli_nll(recon, x, impl="reference")
        torch.testing.assert_close(log_weights, expected.detach())
        torch.testing.assert_close(weights, torch.softmax(expected.detach(), 0))
        torch.testing.assert_close(ess, 1 / weights.square().sum(0))
        torch.testing.assert_close(loss, -(torch.logsumexp(expected, 0) - math.log(3)).mean())

    @IMPLS
    def test_dreg_trains_q_with_squared_weights_and_the_decoder_with_weights(self, impl, device):
        """The whole step, against gradients put together from each sample's own."""
        decoder = torch.nn.Linear(3, 6, dtype=F64, device=device)
        mu, logvar = (normal(2, 3, seed=s, device=device).requires_grad_() for s in (0, 1))
        x = torch.rand(2, 6, dtype=F64).to(device)

        def log_weights_of(z, log_ratio):
            recon = decoder(z)
            nll = F.binary_cross_entropy_with_logits(recon, x.expand_as(recon), reduction="none")
            return log_ratio - nll.sum(-1)

        z, log_ratio = at_seed(3, rsample_log_ratio, mu, logvar, 4, gradient="dreg", impl=impl)
        loss = iwae_loss(decoder(z), x, log_ratio, impl=impl)
        leaves = [mu, logvar, *decoder.parameters()]
        actual = torch.autograd.grad(loss, leaves)

        z, log_ratio = at_seed(3, rsample_log_ratio, mu, logvar, 4, gradient="path", impl=impl)
        log_weights = log_weights_of(z, log_ratio)
        weights = torch.softmax(log_weights, 0).detach()
        for_q = torch.autograd.grad(
            -(weights**2 * log_weights).sum(0).mean(), leaves[:2], retain_graph=True
        )
        for_decoder = torch.autograd.grad(-(weights * log_weights).sum(0).mean(), leaves[2:])
        for a, b in zip(actual, (*for_q, *for_decoder), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
    @IMPLS
    def test_elbo_of_several_samples(self, reduction, likelihood, impl, device):
        """elbo_loss averages the likelihood over samples, before and in every gradient."""
        recon = normal(3, 4, 2, 5, device=device).requires_grad_()
        x = torch.rand(4, 2, 5, dtype=F64).to(device).requires_grad_()
        kl = normal(4, seed=8, device=device).requires_grad_()
        options = {"likelihood": likelihood, "beta": 0.5, "impl": impl}
        parts = elbo_loss(recon, x, kl=kl, reduction=reduction, return_parts=True, **options)
        one = [
            elbo_loss(r, x, kl=kl, reduction=reduction, **options | {"impl": "reference"})
            for r in recon
        ]
        expected = sum(one) / 3
        torch.testing.assert_close(parts.loss, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.loss, parts.nll + 0.5 * parts.kl)
        weight = normal(*expected.shape, seed=6, device=device)
        for again in (True, False):  # a second backward computes what the first handed over
            actual = torch.autograd.grad(parts.loss, (recon, x, kl), weight, retain_graph=again)
            wanted = torch.autograd.grad(expected, (recon, x, kl), weight, retain_graph=again)
            for a, b in zip(actual, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("batch", [1, 2, 5])
    @pytest.mark.parametrize("events", [(3,), (64,), (1100,), (2, 3)])
    def test_likelihoods_in_every_tile(self, batch, events, device):
        """A tile does not cross from one sample to the next, whatever the batch."""
        recon, x = normal(9, batch, *events, device=device), torch.rand(batch, *events).double()
        recon, x = recon.requires_grad_(), x.to(device).requires_grad_()
        upstream = normal(9, batch, seed=3, device=device)
        for function in (bernoulli_nll, gaussian_nll):
            found = []
            for impl in (KERNELS, "reference"):
                nll = function(recon, x, impl=impl)
                found.append([nll, *torch.autograd.grad(nll, (recon, x), upstream)])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    @pytest.mark.triton
    def test_more_samples_than_a_grid_has(self, device, monkeypatch):
        monkeypatch.setattr(launch, "MOST_SAMPLES", 4)
        x = torch.rand(2, 3, device=device)
        with pytest.raises(ValueError, match=r"at most 4 samples a call, got 5.*chunks"):
            bernoulli_nll(torch.zeros(5, 2, 3, device=device), x, impl=KERNELS)
        one = bernoulli_nll(torch.zeros(5, 1, 3, device=device), x[:1], impl=KERNELS)
        assert one.shape == (5, 1)  # of one example there may be any number

    def test_x_is_not_copied(self, device, monkeypatch):
        """For 50 samples the kernels allocate nothing of the size of recon but its gradient."""
        recon = torch.zeros(50, 4, 64, device=device, requires_grad=True)
        x = torch.rand(4, 64, device=device)
        seen = []
        real = launch.launch

        def keep(kernel, grid, arguments, constexprs):
            seen.append(arguments)
            return real(kernel, grid, arguments, constexprs)

        monkeypatch.setattr(launch, "launch", keep)
        bernoulli_nll(recon, x, impl=KERNELS).sum().backward()
        for arguments in seen:
            assert arguments[1].data_ptr() == x.data_ptr()
            assert arguments[1].numel() == x.numel()


def step(impl, gradient):
    """A whole training step's graph, for the compiler."""

    def run(mu, logvar, decoder, x):
        z, log_ratio = rsample_log_ratio(mu, logvar, 4, gradient=gradient, impl=impl)
        return iwae_loss(z @ decoder, x, log_ratio, impl=impl)

    return run


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("gradient", ["total", "dreg"])
@IMPLS
def test_compiles(backend, gradient, impl, device, monkeypatch):
    """One graph, dynamic batch, eager's values and gradients."""
    torch._dynamo.reset()
    if impl == KERNELS:
        monkeypatch.setattr(
            "fused_elbo.estimators.reference.noise.draw_seed",
            lambda device, generator=None: torch.full((), 5, device=device),
        )
    else:
        monkeypatch.setattr(
            "fused_elbo.estimators.reference.reference.standard_normal",
            lambda shape, like, generator=None: torch.ones(shape).to(like),
        )
    compiled = torch.compile(step(impl, gradient), backend=backend, fullgraph=True, dynamic=True)
    for batch, latent, events in ((4, 6, 8), (6, 9, 10)):
        shapes = (batch, latent), (batch, latent), (latent, events), (batch, events)
        tensors = [normal(*s, seed=i, dtype=F32, device=device) for i, s in enumerate(shapes)]
        leaves = [t.requires_grad_() for t in tensors]
        found = []
        for function in (compiled, step(impl, gradient)):
            loss = function(*leaves)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@IMPLS
def test_compiles_without_gradients(impl, device):
    torch._dynamo.reset()
    compiled = torch.compile(step(impl, "total"), backend="aot_eager", fullgraph=True)
    shapes = (4, 6), (4, 6), (6, 8), (4, 8)
    tensors = [normal(*s, seed=i, dtype=F32, device=device) for i, s in enumerate(shapes)]
    with torch.no_grad():
        actual, expected = at_seed(3, compiled, *tensors), at_seed(3, step(impl, "total"), *tensors)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


# The gradients of q that a bound refuses, and what to take instead.
REFUSED = {
    ("path", 0.0): "alpha=1; for this alpha draw with gradient='dreg' or 'total'",
    ("path", 0.5): "alpha=1; for this alpha draw with gradient='total'",
    ("dreg", 0.5): "alpha=0; for this alpha draw with gradient='total'",
    ("dreg", 1.0): "alpha=0; for this alpha draw with gradient='path' or 'total'",
}
PAIRS = [(g, a) for g in ("total", "path", "dreg") for a in (0.0, 0.5, 1.0)]


def mean_gradient(gradient, alpha):
    """The loss's gradient in mu and its standard error: 40,000 examples, K = 5, x | z ~ N(z, I)."""
    batch = 40_000
    mu, logvar = torch.full((2, batch, 1), 0.4, dtype=F64).unbind()
    mu, impl = mu.requires_grad_(), "reference"  # whose gradients are the kernels'
    z, log_ratio = at_seed(1, rsample_log_ratio, mu, logvar, 5, gradient=gradient, impl=impl)
    x = torch.full((batch, 1), 2.0, dtype=F64)
    options = {"likelihood": "gaussian", "alpha": alpha, "reduction": "sum", "impl": impl}
    loss = iwae_loss(z, x, log_ratio + 0, **options)  # + 0: where no check sees the gradient
    (found,) = torch.autograd.grad(loss, mu)
    return found.mean().item(), (found.std() / batch**0.5).item()


@pytest.mark.parametrize(("gradient", "alpha"), PAIRS)
def test_what_is_refused_is_what_is_biased(gradient, alpha):
    """Against the total gradient, which is that of the values: four standard errors, or ten."""
    (wanted, error), (found, its_error) = (mean_gradient(g, alpha) for g in ("total", gradient))
    distance = abs(found - wanted) / math.hypot(error, its_error)
    assert distance > 10 if (gradient, alpha) in REFUSED else distance < 4


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("gradient", "alpha"), PAIRS)
@IMPLS
def test_a_biased_gradient_is_an_error(gradient, alpha, compiled, impl, device):
    """Under the compiler too, in one graph; of one sample all gradients are unbiased."""
    torch._dynamo.reset()
    shapes = (4, 6), (4, 6), (6, 8), (4, 8)
    mu, logvar, weight, x = (normal(*s, seed=i, device=device) for i, s in enumerate(shapes))

    def step(samples):
        z, log_ratio = rsample_log_ratio(mu, logvar, samples, gradient=gradient, impl=impl)
        return iwae_loss(z @ weight, x, log_ratio, alpha=alpha, impl=impl)

    run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
    assert run(1).isfinite()
    if (gradient, alpha) not in REFUSED:
        assert run(3).isfinite()
        return
    with pytest.raises(Exception, match=re.escape(REFUSED[gradient, alpha])) as raised:
        run(3)
    assert compiled or raised.type is ValueError


@pytest.mark.parametrize(("gradient", "alpha"), REFUSED)
def test_a_biased_gradient_is_an_error_in_chunks(gradient, alpha):
    mu, x = torch.zeros(2, 3), torch.zeros(2, 3)
    options = {"chunk_size": 2, "gradient": gradient, "alpha": alpha}
    assert chunked_iwae_loss(torch.nn.Identity(), x, mu, mu, 1, **options).isfinite()
    with pytest.raises(ValueError, match=re.escape(REFUSED[gradient, alpha])):
        chunked_iwae_loss(torch.nn.Identity(), x, mu, mu, 4, **options)
