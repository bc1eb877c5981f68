"""K samples in one pass: noise, estimators of the gradient, weights, losses, chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal

import fused_elbo
from fused_elbo import (
    bernoulli_nll,
    chunked_iwae_loss,
    elbo_loss,
    gaussian_nll,
    importance_weights,
    iwae_loss,
    rsample_log_ratio,
)
from fused_elbo.estimators import functional, noise, reference
from fused_elbo.kernels import gaussian_rsample, launch

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
IMPLS = pytest.mark.parametrize("impl", ["triton", "reference"])
SAMPLES = [1, 2, 3, 64, 1000]


def normal(*shape, seed=0, dtype=F64, device="cpu"):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator).to(device)


def q_and_prior(rows, cols, device):
    """Leaves (mu, logvar, prior_mu, prior_logvar)."""
    return [
        (scale * normal(rows, cols, seed=i, device=device)).requires_grad_()
        for i, scale in enumerate((1.0, 0.5, 0.3, 0.3))
    ]


def at_seed(seed, function, *args, **kwargs):
    torch.manual_seed(seed)
    return function(*args, **kwargs)


class TestNoise:
    """One stream, however the samples are shared out among programs and calls."""

    @pytest.mark.parametrize("antithetic", [False, True])
    def test_a_sample_does_not_depend_on_how_many_there_are(self, antithetic, device):
        mu, logvar = normal(5, 6, device=device), normal(5, 6, seed=1, device=device)
        options = {"antithetic": antithetic, "impl": "triton"}
        few = at_seed(4, rsample_log_ratio, mu, logvar, 8, **options)
        many = at_seed(4, rsample_log_ratio, mu, logvar, 64, **options)
        for a, b in zip(few, many, strict=True):
            assert torch.equal(a, b[:8])

    @pytest.mark.parametrize("programs", [1, 6, 10_000])
    def test_nor_on_how_programs_share_them(self, programs, device, monkeypatch):
        """One program for all samples, a few for each, one for every sample."""
        leaves = q_and_prior(5, 6, device)
        dz, dlog_ratio = normal(33, 5, 6, device=device), normal(33, 5, device=device)

        def run():
            torch.manual_seed(4)
            outputs = rsample_log_ratio(*leaves[:2], 33, *leaves[2:], impl="triton")
            return outputs, torch.autograd.grad(outputs, leaves, (dz, dlog_ratio))

        expected, expected_gradients = run()
        monkeypatch.setattr(gaussian_rsample, "PROGRAMS", programs)
        monkeypatch.setattr(gaussian_rsample, "LEAST_SUMMED", 1)
        actual, gradients = run()
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        for a, b in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_it_is_the_stream_of_gaussian_rsample(self, device):
        mu, logvar = normal(5, 6, device=device), normal(5, 6, seed=1, device=device)
        z, _ = at_seed(4, rsample_log_ratio, mu, logvar, 3, impl="triton")
        assert torch.equal(z, at_seed(4, fused_elbo.gaussian_rsample, mu, logvar, 3, impl="triton"))

    @IMPLS
    def test_antithetic_pairs_are_mirrored(self, impl, device):
        mu, logvar = normal(5, 6, device=device), normal(5, 6, seed=1, device=device)
        z, log_ratio = rsample_log_ratio(mu, logvar, 6, antithetic=True, impl=impl)
        torch.testing.assert_close(z[::2] - mu, mu - z[1::2], rtol=1e-12, atol=1e-12)
        assert z[::2].unique(dim=0).shape[0] == 3
        density = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
        prior = Independent(Normal(torch.zeros_like(mu), 1.0), 1)
        expected = prior.log_prob(z) - density.log_prob(z)
        torch.testing.assert_close(log_ratio, expected, rtol=1e-9, atol=1e-9)

    def test_antithetic_takes_half_the_draws(self, device, monkeypatch):
        """Sample 2k is draw k of the stream."""
        zero = torch.zeros(3, 4, device=device)
        pairs, _ = at_seed(4, rsample_log_ratio, zero, zero, 6, antithetic=True, impl="triton")
        single, _ = at_seed(4, rsample_log_ratio, zero, zero, 3, impl="triton")
        assert torch.equal(pairs[::2], single)

    @pytest.mark.parametrize("antithetic", [False, True])
    @IMPLS
    def test_chunks_continue_the_stream(self, impl, antithetic, device):
        q = normal(5, 6, device=device), normal(5, 6, seed=1, device=device), None, None
        seed = noise.draw_seed(device)
        options = {"gradient": "total", "antithetic": antithetic, "impl": impl}
        whole = functional.samples_from(seed, 0, 10, *q, **options)
        for first, size in ((0, 4), (4, 4), (8, 2)):
            part = functional.samples_from(seed, first, size, *q, **options)
            for a, b in zip(part, whole, strict=True):
                assert torch.equal(a, b[first : first + size])


def per_sample_gradients(eps, mu, logvar, prior_mu, prior_logvar, dz, dlog_ratio):
    """By hand, in float64: what each sample gives (mu, logvar) along its path, and as a score.

    At z flow dz and, from the log ratio, d log p / dz - d log q / dz.
    """
    std, prior_variance = torch.exp(0.5 * logvar), torch.exp(prior_logvar)
    z = mu + std * eps
    dlr = dlog_ratio.unsqueeze(-1)
    at_z = dz + dlr * (-(z - prior_mu) / prior_variance + (z - mu) / std**2)
    path = at_z, at_z * 0.5 * std * eps
    score = -dlr * (z - mu) / std**2, -dlr * 0.5 * ((z - mu) ** 2 / std**2 - 1)
    prior = (
        dlr * (z - prior_mu) / prior_variance,
        dlr * 0.5 * ((z - prior_mu) ** 2 / prior_variance - 1),
    )
    return path, score, prior


@pytest.mark.parametrize(
    ("gradient", "samples"),
    # 1000 passes through the loop are a minute of the interpreter's: once.
    [(g, k) for g in ("total", "path", "dreg") for k in SAMPLES if k < 1000 or g == "dreg"],
)
@IMPLS
def test_gradients_by_hand(gradient, samples, impl, device):
    """Total: path and score; path: the path alone; DReG: the path, times the weight again.

    And the prior, the model's, has the single weight in all three.
    """
    leaves = q_and_prior(3, 5, device)
    weights = torch.softmax(normal(samples, 3, device=device), 0)
    upstream = weights * torch.tensor([1.0, -2.0, 0.5], device=device)  # one factor an example
    dz = normal(samples, 3, 5, seed=3, device=device)
    seed = noise.draw_seed(device)
    options = {"gradient": gradient, "antithetic": False, "impl": impl}
    outputs = functional.samples_from(seed, 0, samples, *leaves, **options)
    actual = torch.autograd.grad(outputs, leaves, (dz, upstream))

    tensors = [leaf.detach() for leaf in leaves]
    eps = (outputs[0].detach() - tensors[0]) * torch.exp(-0.5 * tensors[1])
    path, score, prior = per_sample_gradients(eps, *tensors, dz, upstream)
    expected = []
    for along, scored in zip(path, score, strict=True):
        along = along * weights.unsqueeze(-1) if gradient == "dreg" else along
        expected.append((along + scored if gradient == "total" else along).sum(0))
    expected += [p.sum(0) for p in prior]
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
@IMPLS
def test_values_are_the_same_for_all_gradients(gradient, impl, device):
    leaves = q_and_prior(3, 5, device)
    z, log_ratio = at_seed(
        2, rsample_log_ratio, *leaves[:2], 4, *leaves[2:], gradient=gradient, impl=impl
    )
    mu, logvar, prior_mu, prior_logvar = (leaf.detach() for leaf in leaves)
    density = Independent(Normal(mu, (0.5 * logvar).exp()), 1)
    prior = Independent(Normal(prior_mu, (0.5 * prior_logvar).exp()), 1)
    expected = prior.log_prob(z) - density.log_prob(z)
    torch.testing.assert_close(log_ratio, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("dimensions", [64, 1024])
def test_the_reference_is_held_to_the_bar(dimensions, scale):
    """In float32, log ratio and gradients: at most twice the error of the eager formula."""

    def eager(eps, mu, logvar, gradient):
        q = Normal(mu, (0.5 * logvar).exp())
        z = mu + (0.5 * logvar).exp() * eps
        return z, (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)

    def ours(eps, mu, logvar, gradient):
        return reference.log_ratio_at(eps, mu, logvar, gradient=gradient)

    values = normal(8, 50, dimensions), *(scale * normal(50, dimensions, seed=s) for s in (1, 2))
    values = [v.float() for v in values]
    upstream = normal(8, 50, seed=3).float()

    def run(function, dtype):
        eps, mu, logvar = (v.to(dtype) for v in values)
        leaves = mu.requires_grad_(), logvar.requires_grad_()
        _, log_ratio = function(eps, *leaves, "total")
        return log_ratio.detach(), *torch.autograd.grad(log_ratio, leaves, upstream.to(dtype))

    for exact, found, usual in zip(run(ours, F64), run(ours, F32), run(eager, F32), strict=True):
        error, bar = ((t.double() - exact).abs().max() for t in (found, usual))
        assert error <= 2 * bar + 1e-7


@IMPLS
def test_dreg_gives_nothing_where_no_sample_counts(impl, device):
    """An example whose weights are all 0 has a log ratio without gradient: no 0 / 0."""
    mu, logvar = (normal(2, 3, seed=s, device=device).requires_grad_() for s in (0, 1))
    outputs = rsample_log_ratio(mu, logvar, 4, gradient="dreg", impl=impl)
    upstream = torch.softmax(normal(4, 2, seed=2, device=device), 0)
    upstream[:, 0] = 0
    dz = normal(4, 2, 3, seed=3, device=device)
    dz[:, 0] = 0
    for gradient in torch.autograd.grad(outputs, (mu, logvar), (dz, upstream)):
        assert (gradient[0] == 0).all()
        assert gradient[1].isfinite().all()
        assert (gradient[1] != 0).all()


def test_only_one_of_the_outputs_is_used(device):
    """What is not used counts as one with a zero gradient."""
    leaves = q_and_prior(3, 5, device)
    dz, dlog_ratio = normal(4, 3, 5, device=device), normal(4, 3, device=device)
    for gradient in ("total", "path"):

        def run(upstream):
            torch.manual_seed(5)
            options = {"gradient": gradient, "impl": "triton"}  # noqa: B023
            outputs = rsample_log_ratio(*leaves[:2], 4, *leaves[2:], **options)
            used = [o for o, u in zip(outputs, upstream, strict=True) if u is not None]
            given = [u for u in upstream if u is not None]
            return torch.autograd.grad(used, leaves, given, allow_unused=True)

        for alone, both in (
            ((dz, None), (dz, 0 * dlog_ratio)),
            ((None, dlog_ratio), (0 * dz, dlog_ratio)),
        ):
            for a, b in zip(run(alone), run(both), strict=True):
                torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b)


def test_upstream_gradients_of_any_stride(device):
    leaves = q_and_prior(3, 5, device)

    def run(dz, dlog_ratio):
        outputs = at_seed(1, rsample_log_ratio, *leaves[:2], 4, *leaves[2:], impl="triton")
        return torch.autograd.grad(outputs, leaves, (dz, dlog_ratio))

    dz, dlog_ratio = normal(5, 3, 4, device=device).permute(2, 1, 0), normal(3, 4, device=device).T
    for strided in ((dz, dlog_ratio), (normal(1, 1, 5).expand(4, 3, 5), normal(4, 1).expand(4, 3))):
        strided = [t.to(device) for t in strided]
        for a, b in zip(run(*strided), run(*(t.contiguous() for t in strided)), strict=True):
            assert torch.equal(a, b)


class TestWeights:
    @pytest.mark.parametrize("samples", SAMPLES)
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, -1.0])
    @IMPLS
    def test_against_the_definition(self, alpha, samples, impl, device):
        log_weights = (3 * normal(samples, 5, device=device)).requires_grad_()
        bound, weights, ess = importance_weights(log_weights, alpha, impl=impl)
        power = (1 - alpha) * log_weights.detach()
        expected = torch.softmax(power, 0)
        if alpha == 1:
            value = log_weights.detach().mean(0)
        else:
            value = (torch.logsumexp(power, 0) - math.log(samples)) / (1 - alpha)
        torch.testing.assert_close(bound.detach(), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ess, 1 / expected.square().sum(0), rtol=1e-12, atol=1e-12)
        upstream = normal(5, seed=2, device=device)
        (gradient,) = torch.autograd.grad(bound, log_weights, upstream)
        torch.testing.assert_close(gradient, upstream * expected, rtol=1e-12, atol=1e-12)

    @IMPLS
    def test_gradcheck(self, impl, device):
        log_weights = normal(4, 2, 3, device=device).requires_grad_()
        for alpha in (0.0, 0.3, 1.0):
            assert torch.autograd.gradcheck(
                lambda w: importance_weights(w, alpha, impl=impl).bound,  # noqa: B023
                log_weights,
            )

    @pytest.mark.parametrize("dtype", [F32, F64])
    @IMPLS
    def test_extremes(self, impl, dtype, device):
        """Apart by 1e4, all -inf, one that is not, one +inf, and a NaN: an example each."""
        inf = math.inf
        log_weights = torch.tensor(
            [
                [1e4, -inf, -inf, 0.0, math.nan],
                [0.0, -inf, -3.0, inf, 0.0],
                [-1e4, -inf, -inf, 1.0, 1.0],
            ],
            dtype=dtype,
            device=device,
        ).requires_grad_()
        bound, weights, ess = importance_weights(log_weights, impl=impl)
        log_3 = math.log(3)
        values = torch.tensor([1e4 - log_3, -inf, -3.0 - log_3, inf, math.nan], dtype=dtype)
        torch.testing.assert_close(bound.detach().cpu(), values, equal_nan=True)
        expected = torch.tensor(
            [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=dtype
        )
        torch.testing.assert_close(weights[:, :4].cpu(), expected)
        assert weights[:, 4].isnan().all()
        sizes = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=dtype)
        torch.testing.assert_close(ess[:4].cpu(), sizes)
        (gradient,) = torch.autograd.grad(bound[:3].sum(), log_weights)
        torch.testing.assert_close(gradient[:, :3].cpu(), expected[:, :3])

    @pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-6, 1 + 1e-6])
    @IMPLS
    def test_continuous_at_one(self, alpha, impl, device):
        """In float32 the logarithm of a mean of weights to the power 1e-6 cancels."""
        log_weights = normal(8, 3, device=device) - 100
        exact = importance_weights(log_weights, alpha, impl="reference").bound
        order = 1 - alpha
        direct = (torch.logsumexp(order * log_weights, 0) - math.log(8)) / order
        torch.testing.assert_close(exact, direct, rtol=1e-6, atol=1e-6)
        single = importance_weights(log_weights.float(), alpha, impl=impl).bound
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=3e-5)

    @pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
    def test_layouts_and_more_dimensions(self, layout, device):
        if layout == "transposed":
            log_weights = normal(3, 4, 70, device=device).permute(2, 0, 1)
        elif layout == "expanded":
            log_weights = normal(70, 1, 1, device=device).expand(70, 3, 4)
        else:
            log_weights = normal(140, 3, 8, device=device)[::2, :, ::2]
        actual = importance_weights(log_weights, impl="triton")
        expected = importance_weights(log_weights.contiguous(), impl="reference")
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_empty_batch(self, device):
        log_weights = torch.zeros(4, 0, device=device, requires_grad=True)
        bound, weights, ess = importance_weights(log_weights, impl="triton")
        assert (bound.shape, weights.shape, ess.shape) == ((0,), (4, 0), (0,))
        assert torch.autograd.grad(bound.sum(), log_weights)[0].shape == (4, 0)

    def test_no_second_derivative(self, device):
        log_weights = normal(4, 3, device=device).requires_grad_()
        bound = importance_weights(log_weights, impl="triton").bound
        (gradient,) = torch.autograd.grad(bound.sum(), log_weights, create_graph=True)
        with pytest.raises(RuntimeError, match="impl='reference'"):
            gradient.square().sum().backward()

    def test_float16_and_bfloat16_are_summed_in_float32(self, device):
        for dtype in (F16, BF16):
            log_weights = normal(300, 3, device=device).to(dtype)
            bound, weights, _ = importance_weights(log_weights, impl="triton")
            assert bound.dtype == weights.dtype == F32
            exact = torch.logsumexp(log_weights.double(), 0) - math.log(300)
            torch.testing.assert_close(bound.double(), exact, rtol=0, atol=2e-6)


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
            for impl in ("triton", "reference"):
                nll = function(recon, x, impl=impl)
                found.append([nll, *torch.autograd.grad(nll, (recon, x), upstream)])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    def test_more_samples_than_a_grid_has(self, device, monkeypatch):
        monkeypatch.setattr(launch, "MOST_SAMPLES", 4)
        x = torch.rand(2, 3, device=device)
        with pytest.raises(ValueError, match=r"at most 4 samples a call, got 5.*chunks"):
            bernoulli_nll(torch.zeros(5, 2, 3, device=device), x, impl="triton")
        one = bernoulli_nll(torch.zeros(5, 1, 3, device=device), x[:1], impl="triton")
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

        monkeypatch.setattr("fused_elbo.kernels.bernoulli_nll.launch", keep)
        bernoulli_nll(recon, x, impl="triton").sum().backward()
        for arguments in seen:
            assert arguments[1].data_ptr() == x.data_ptr()
            assert arguments[1].numel() == x.numel()


def mlp(latents, events, device, dropout=0.0):
    return torch.nn.Sequential(
        torch.nn.Linear(latents, 8, dtype=F64),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(8, events, dtype=F64),
    ).to(device)


class TestChunks:
    @pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
    @pytest.mark.parametrize("chunk_size", [1, 5, 16, 100])
    @IMPLS
    def test_same_loss_and_gradients_as_in_one_piece(self, gradient, chunk_size, impl, device):
        """All of them: of q, a learned prior, the decoder, and a learned sigma."""
        leaves = q_and_prior(3, 4, device)
        sigma = torch.tensor(-0.4, dtype=F64, device=device, requires_grad=True)
        decoder, x = mlp(4, 6, device), normal(3, 6, seed=4, device=device)
        everything = [*leaves, sigma, *decoder.parameters()]
        loss = {"likelihood": "gaussian", "recon_logvar": sigma, "impl": impl}
        chunked = at_seed(
            7, chunked_iwae_loss, decoder, x, *leaves[:2], 16, chunk_size=chunk_size,
            prior_mu=leaves[2], prior_logvar=leaves[3], gradient=gradient, **loss,
        )  # fmt: skip
        seed = at_seed(7, noise.draw_seed, device)
        z, log_ratio = functional.samples_from(
            seed, 0, 16, *leaves, gradient=gradient, antithetic=False, impl=impl
        )
        whole = iwae_loss(decoder(z), x, log_ratio, **loss)
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)
        actual = torch.autograd.grad(chunked, everything)
        expected = torch.autograd.grad(whole, everything)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("alpha", [0.5, 1.0])
    def test_other_bounds_pairs_and_parts(self, alpha, device):
        mu, logvar = (normal(3, 4, seed=s, device=device).requires_grad_() for s in (0, 1))
        decoder, x = mlp(4, 6, device), torch.rand(3, 6, dtype=F64).to(device)
        found = []
        for chunk_size in (4, 12):
            parts = at_seed(
                7, chunked_iwae_loss, decoder, x, mu, logvar, 12, chunk_size=chunk_size,
                alpha=alpha, antithetic=True, reduction="none", return_parts=True,
            )  # fmt: skip
            found.append([*parts, *torch.autograd.grad(parts.loss.sum(), (mu, logvar))])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert found[0][0].shape == (3,)
        assert found[0][1].shape == found[0][2].shape == (12, 3)

    def test_dropout_is_the_same_the_second_time(self, device):
        """The gradient is that of the loss: finite differences in the decoder's weights."""
        mu, logvar = normal(2, 3, device=device), normal(2, 3, seed=1, device=device)
        decoder, x = mlp(3, 5, device, dropout=0.5), torch.rand(2, 5, dtype=F64).to(device)
        weight = decoder[3].weight

        def loss():
            return at_seed(3, chunked_iwae_loss, decoder, x, mu, logvar, 6, chunk_size=2)

        (gradient,) = torch.autograd.grad(loss(), weight)
        direction = normal(*weight.shape, device=device)
        with torch.no_grad():
            weight += 1e-6 * direction
            above = loss()
            weight -= 2e-6 * direction
            below = loss()
        slope = (above - below) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
    @IMPLS
    def test_dreg_of_half_precision_and_under_autocast(self, dtype, impl, device):
        """The hook's weights are float32, and the gradients that it takes are not."""
        mu, logvar = (normal(3, 4, seed=s, device=device).to(dtype) for s in (0, 1))
        leaves = mu.requires_grad_(), logvar.requires_grad_()
        decoder, x = mlp(4, 6, device).float(), torch.rand(3, 6, device=device)
        with torch.autocast(device, dtype=BF16):
            q = (
                leaves
                if dtype != F32
                else [leaf * torch.ones(3, 4, dtype=BF16, device=device) for leaf in leaves]
            )
            loss = at_seed(
                1, chunked_iwae_loss, decoder, x, *q, 8, chunk_size=4, gradient="dreg", impl=impl
            )
        gradients = torch.autograd.grad(loss, leaves)
        exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
        expected = at_seed(
            1, chunked_iwae_loss, decoder.double(), x.double(), *exact, 8, chunk_size=8,
            gradient="dreg", impl=impl,
        )  # fmt: skip
        torch.testing.assert_close(loss.double(), expected, rtol=0.02, atol=0)
        for a, b in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
            assert a.dtype == dtype
            assert (a.double() - b).norm() < 0.05 * b.norm()

    def test_second_derivatives_of_dreg_are_refused(self):
        mu, logvar = (normal(3, 4, seed=s).requires_grad_() for s in (0, 1))
        decoder, x = mlp(4, 6, "cpu"), torch.rand(3, 6, dtype=F64)
        loss = chunked_iwae_loss(decoder, x, mu, logvar, 8, chunk_size=4, gradient="dreg")
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(loss, mu, create_graph=True)

    def test_memory_does_not_grow_with_the_samples(self):
        """Peak of forward and backward on a CPU, of 16 and of 256 samples, 4 at a time."""
        from bench.memory import cpu_peak

        decoder = torch.nn.Sequential(
            torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 784)
        )
        mu = torch.zeros(128, 8, requires_grad=True)
        logvar, x = torch.zeros(128, 8, requires_grad=True), torch.rand(128, 784)

        def step(samples, chunk_size):
            loss = chunked_iwae_loss(
                decoder, x, mu, logvar, samples, chunk_size=chunk_size, gradient="dreg"
            )
            torch.autograd.grad(loss, (mu, logvar, *decoder.parameters()))

        few, many = (cpu_peak(lambda _: step(n, 4), None) for n in (16, 256))  # noqa: B023
        assert many < 1.1 * few
        assert cpu_peak(lambda _: step(16, 16), None) > 3 * few

    def test_without_gradients(self, device):
        decoder, x = mlp(4, 6, device), torch.rand(3, 6, dtype=F64).to(device)
        mu, logvar = normal(3, 4, device=device), normal(3, 4, seed=1, device=device)
        with torch.no_grad():
            loss = at_seed(1, chunked_iwae_loss, decoder, x, mu, logvar, 10, chunk_size=3)
        assert not loss.requires_grad
        assert torch.equal(
            loss, at_seed(1, chunked_iwae_loss, decoder, x, mu, logvar, 10, chunk_size=3).detach()
        )


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
    if impl == "triton":
        monkeypatch.setattr(
            "fused_elbo.kernels.noise.draw_seed",
            lambda device, generator=None: torch.full((), 5, device=device),
        )
    else:
        monkeypatch.setattr(
            "fused_elbo.estimators.reference.standard_normal",
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


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_half_precision(dtype, device):
    """Samples in half precision, sums in float32; a whole step stays finite and close."""
    mu, logvar = (normal(3, 8, seed=s, device=device).to(dtype) for s in (0, 1))
    mu, logvar = mu.requires_grad_(), logvar.requires_grad_()
    found = []
    for q in ((mu, logvar), (mu.double(), logvar.double())):
        z, log_ratio = at_seed(2, rsample_log_ratio, *q, 4, gradient="dreg", impl="triton")
        assert (z.dtype, log_ratio.dtype) == ((dtype, F32) if q[0] is mu else (F64, F64))
        upstream = torch.softmax(normal(4, 3, device=device), 0)
        found.append([z, log_ratio])
        dz = normal(4, 3, 8, device=device)
        found[-1] += torch.autograd.grad(
            (z, log_ratio), (mu, logvar), (dz.to(z.dtype), upstream.to(log_ratio.dtype))
        )
    tolerance = 8 * torch.finfo(dtype).eps
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)
