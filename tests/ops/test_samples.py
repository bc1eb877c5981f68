"""K samples in one pass: noise, densities and estimators of the gradient."""

import pytest
import torch
from torch.distributions import Independent, Normal

import fused_elbo
from fused_elbo import rsample_log_ratio
from fused_elbo.estimators.dispatch import sample_calls
from fused_elbo.estimators.reference import noise, reference
from fused_elbo.kernels import ops
from fused_elbo.kernels.triton import gaussian_rsample
from helpers.machine import KERNELS
from helpers.samples import IMPLS, SAMPLES, at_seed, normal, q_and_prior

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


class TestNoise:
    """One stream, however the samples are shared out among programs and calls."""

    @pytest.mark.parametrize("antithetic", [False, True])
    def test_a_sample_does_not_depend_on_how_many_there_are(self, antithetic, device):
        mu, logvar = normal(5, 6, device=device), normal(5, 6, seed=1, device=device)
        options = {"antithetic": antithetic, "impl": KERNELS}
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
            outputs = rsample_log_ratio(*leaves[:2], 33, *leaves[2:], impl=KERNELS)
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
        z, _ = at_seed(4, rsample_log_ratio, mu, logvar, 3, impl=KERNELS)
        assert torch.equal(z, at_seed(4, fused_elbo.gaussian_rsample, mu, logvar, 3, impl=KERNELS))

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
        pairs, _ = at_seed(4, rsample_log_ratio, zero, zero, 6, antithetic=True, impl=KERNELS)
        single, _ = at_seed(4, rsample_log_ratio, zero, zero, 3, impl=KERNELS)
        assert torch.equal(pairs[::2], single)

    @pytest.mark.parametrize("antithetic", [False, True])
    @IMPLS
    def test_chunks_continue_the_stream(self, impl, antithetic, device):
        q = normal(5, 6, device=device), normal(5, 6, seed=1, device=device), None, None
        seed = noise.draw_seed(device)
        options = {"gradient": "total", "antithetic": antithetic, "impl": impl}
        options |= {"seed": seed}
        whole = sample_calls.samples_of_stream(q[0].shape, *q, 10, first_sample=0, **options)
        for first, size in ((0, 4), (4, 4), (8, 2)):
            part = sample_calls.samples_of_stream(
                q[0].shape, *q, size, first_sample=first, **options
            )
            for a, b in zip(part, whole, strict=True):
                assert torch.equal(a, b[first : first + size])


def per_sample_gradients(eps, mu, logvar, prior_mu, prior_logvar, dz, dlog_ratio):
    """Each sample's gradients in (mu, logvar) by hand, in float64: along its path, and as a score.

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
    ("gradient", "samples", "antithetic"),
    # 1000 passes through the loop are a minute of the interpreter's: once.
    [(g, k, False) for g in ("total", "path", "dreg") for k in SAMPLES if k < 1000 or g == "dreg"]
    + [(g, 6, True) for g in ("total", "path", "dreg")],
)
@IMPLS
def test_gradients_by_hand(gradient, samples, antithetic, impl, device):
    """Total: path and score; path: the path alone; DReG: the path, times the weight again.

    And the prior, the model's, has the single weight in all three.
    """
    leaves = q_and_prior(3, 5, device)
    weights = torch.softmax(normal(samples, 3, device=device), 0)
    upstream = weights * torch.tensor([1.0, -2.0, 0.5], device=device)  # one factor an example
    dz = normal(samples, 3, 5, seed=3, device=device)
    seed = noise.draw_seed(device)
    options = {"gradient": gradient, "antithetic": antithetic, "impl": impl}
    outputs = sample_calls.samples_of_stream(
        leaves[0].shape, *leaves, samples, seed=seed, first_sample=0, **options
    )
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


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
def test_without_a_prior(gradient, antithetic, device):
    """With p(z) = 1 the log ratio is -log q(z): values and gradients of the reference, at z."""
    mu, logvar = q_and_prior(3, 5, device)[:2]
    options = 2, 6, gradient, True, antithetic
    seed = noise.draw_seed(device)
    outputs = ops.rsample_log_ratio(mu, logvar, None, None, seed, *options)
    eps = ((outputs[0] - mu) * torch.exp(-0.5 * logvar)).detach()
    expected = reference.log_ratio_at(eps, mu, logvar, gradient=gradient, improper_prior=True)
    upstream = normal(6, 3, 5, seed=3, device=device), normal(6, 3, device=device).exp()
    found = *outputs, *torch.autograd.grad(outputs, (mu, logvar), upstream)
    expected = *expected, *torch.autograd.grad(expected, (mu, logvar), upstream)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of_x", [False, True], ids=["", "x has a gradient"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "learned by row", "learned"])
def test_few_examples_with_many_samples(name, rows, of_x, device):
    """More samples than a tile has rows. Those of one x are rows like others, without its gradient.

    A single x is broadcast, and its gradient a sum over all of them.
    """
    samples, cols = 70, 20
    x = torch.rand(rows, cols, dtype=F64, device=device, requires_grad=of_x)
    shapes = {"learned by row": (samples, rows, 1), "learned": (samples, rows, cols)}
    arguments = [normal(samples, rows, cols, device=device).requires_grad_(), x]
    if name in shapes:
        arguments.append(normal(*shapes[name], seed=1, device=device).requires_grad_())
    function = fused_elbo.bernoulli_nll if name == "bernoulli" else fused_elbo.gaussian_nll
    leaves = [a for a in arguments if a.requires_grad]
    upstream, found = normal(samples, rows, seed=2, device=device), []
    for impl in (KERNELS, "reference"):
        nll = function(*arguments, impl=impl)
        found.append([nll, *torch.autograd.grad(nll, leaves, upstream)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


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
    """An unused result counts as one with a zero gradient."""
    leaves = q_and_prior(3, 5, device)
    dz, dlog_ratio = normal(4, 3, 5, device=device), normal(4, 3, device=device)
    for gradient in ("total", "path"):

        def run(upstream):
            torch.manual_seed(5)
            options = {"gradient": gradient, "impl": KERNELS}  # noqa: B023
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
        outputs = at_seed(1, rsample_log_ratio, *leaves[:2], 4, *leaves[2:], impl=KERNELS)
        return torch.autograd.grad(outputs, leaves, (dz, dlog_ratio))

    dz, dlog_ratio = normal(5, 3, 4, device=device).permute(2, 1, 0), normal(3, 4, device=device).T
    for strided in ((dz, dlog_ratio), (normal(1, 1, 5).expand(4, 3, 5), normal(4, 1).expand(4, 3))):
        strided = [t.to(device) for t in strided]
        for a, b in zip(run(*strided), run(*(t.contiguous() for t in strided)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_half_precision(dtype, device):
    """Samples in half precision, sums in float32; a whole step stays finite and close."""
    mu, logvar = (normal(3, 8, seed=s, device=device).to(dtype) for s in (0, 1))
    mu, logvar = mu.requires_grad_(), logvar.requires_grad_()
    found = []
    for q in ((mu, logvar), (mu.double(), logvar.double())):
        z, log_ratio = at_seed(2, rsample_log_ratio, *q, 4, gradient="dreg", impl=KERNELS)
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
