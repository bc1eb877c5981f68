"""Two learned Gaussians in log standard deviations, and KL balancing."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from fused_elbo import balanced_kl, gaussian_kl, rsample_kl_log_std
from helpers import launches
from helpers.copies import Copies
from helpers.machine import KERNELS

F32, F64 = torch.float32, torch.float64
SHAPE = (3, 2, 3, 2)
IMPL = pytest.mark.parametrize("impl", ["reference", KERNELS])
NVAE = {"soft_clamp": 5.0, "std_offset": 0.01}


def tensors(*shapes, dtype=F64, device="cpu", scale=1.0):
    generator = torch.Generator().manual_seed(0)
    made = (scale * torch.randn(shape, generator=generator, dtype=F64) for shape in shapes)
    return [t.to(device, dtype).requires_grad_() for t in made]


def normal(mean, log_std, soft_clamp=0.0, std_offset=0.0):
    """NVAE's, or VDVAE's, as their papers have them."""
    if soft_clamp:
        mean, log_std = (soft_clamp * torch.tanh(t / soft_clamp) for t in (mean, log_std))
    return Normal(mean, torch.exp(log_std) + std_offset)


def exact(leaves, eps, options):
    """(z, kl) in float64, of a q and a p."""
    q, p = normal(*leaves[:2], **options), normal(*leaves[2:], **options)
    return q.mean + q.stddev * eps, kl_divergence(q, p).flatten(1).sum(1)


@pytest.mark.parametrize("options", [{}, NVAE, {"soft_clamp": 2.0}, {"std_offset": 0.1}], ids=str)
@IMPL
def test_values_and_gradients(impl, options, device):
    """The results of two torch.distributions at the noise that was drawn, means far apart too."""
    leaves = tensors(*[SHAPE] * 4, device=device, scale=3.0)
    z, kl = rsample_kl_log_std(*leaves, **options, impl=impl)
    q = normal(*leaves[:2], **options)
    eps = ((z - q.mean) / q.stddev).detach()
    expected = exact(leaves, eps, options)
    for actual, wanted in zip((z, kl), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(0.5, 2, z.numel(), dtype=F64, device=device).view(SHAPE), kl.detach()
    for found, wanted in zip(
        torch.autograd.grad((z, kl), leaves, weights),
        torch.autograd.grad(expected, leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


@IMPL
def test_float32_is_as_accurate_as_its_formula(impl, device):
    """NVAE's own operations in float32 beside ours, against float64; q close to p, where they
    cancel, and a soft clamp at its ends.
    """
    a, b, c, d = (t.detach() for t in tensors(*[(4, 64)] * 4, scale=2.0))
    near = [a, b, a + 1e-3 * c, b + 1e-3 * d]
    for leaves in ([a, b, c, d], near, [8 * a, 8 * b, 8 * c, 8 * d]):
        narrow = [t.to(F32) for t in leaves]
        wide = [t.double() for t in narrow]
        _, expected = exact(wide, 0.0, NVAE)
        _, usual = exact(narrow, 0.0, NVAE)
        _, kl = rsample_kl_log_std(*(t.to(device) for t in narrow), **NVAE, impl=impl)
        assert kl.dtype == F32
        bar = 2 * (usual - expected).abs().max() + 3e-6 * expected.abs().max()
        assert (kl.cpu() - expected).abs().max() <= bar


@IMPL
def test_standard_prior(impl, device):
    mu, log_std = tensors(SHAPE, SHAPE, device=device)
    zero = torch.zeros_like(mu)
    for options in ({}, NVAE):  # NVAE's is of a standard deviation of 1.01
        _, kl = rsample_kl_log_std(mu, log_std, **options, impl=impl)
        _, expected = rsample_kl_log_std(mu, log_std, zero, zero, **options, impl=impl)
        torch.testing.assert_close(kl, expected)
    _, half = rsample_kl_log_std(mu, log_std, prior_log_std=zero[0], impl=impl)
    torch.testing.assert_close(half, rsample_kl_log_std(mu, log_std, impl=impl)[1])


@IMPL
def test_slices_and_channels_last(impl, device):
    """One tensor of features, as a network puts it out, whichever way it lies."""
    (features,) = tensors((3, 9, 2, 3), device=device)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = features.detach().contiguous(memory_format=layout).requires_grad_()
        parts = leaf[:, :2], leaf[:, 2:4], leaf[:, 4:6], leaf[:, 6:8]
        z, kl = rsample_kl_log_std(*parts, impl=impl)
        assert z.shape == (3, 2, 2, 3)
        results.append((kl, *torch.autograd.grad(kl.sum(), leaf)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_slices_are_read_as_they_lie(layout, device):
    """No copies of channels_last either: at most of the KL's gradient, to an example's places."""
    (features,) = tensors((3, 12, 2, 3), device=device)
    parts = features.detach().contiguous(memory_format=layout).requires_grad_().chunk(4, 1)
    with Copies() as made:
        z, kl = rsample_kl_log_std(*parts, impl=KERNELS)
        upstream = torch.ones_like(z), torch.ones_like(kl)
        gradients = torch.autograd.grad((z, kl), parts, upstream)
    assert all(math.prod(shape) <= 3 * 2 * 3 for shape in made.shapes)
    for result in (z, *gradients):
        assert result.is_contiguous(memory_format=layout)


def test_gradcheck(device):
    """gradcheck of the kernels themselves; the noise is that of the seed."""
    leaves = tensors(*[(1, 2)] * 4, device=device)

    def values(*leaves):
        torch.manual_seed(1)
        return rsample_kl_log_std(*leaves, **NVAE, impl=KERNELS)

    assert torch.autograd.gradcheck(values, leaves)


class TestBalancedKL:
    @IMPL
    def test_one_value_and_two_gradients(self, impl, device):
        """The gradients of two KLs with one side held constant, above the free nats."""
        leaves = tensors(*[(6, 3)] * 4, device=device)
        mu, logvar, prior_mu, prior_logvar = leaves
        # Between two of the KLs, so that some examples are below whatever the last digit is.
        free = gaussian_kl(*leaves, impl="reference").sort().values[2:4].mean().item()
        dyn, rep = balanced_kl(*leaves, free_nats=free, impl=impl)
        assert torch.equal(dyn, rep)
        q = Normal(mu, torch.exp(logvar / 2))
        p = Normal(prior_mu, torch.exp(prior_logvar / 2))
        kl = kl_divergence(q, p).sum(-1)
        torch.testing.assert_close(dyn, kl.clamp_min(free))
        above = (kl > free).double()
        assert 0 < above.sum() < 6
        upstream = torch.linspace(0.5, 2, 6, dtype=F64, device=device)
        expected = torch.autograd.grad(kl, leaves, upstream * above, retain_graph=True)
        options = {"materialize_grads": True, "retain_graph": True}
        of_rep = torch.autograd.grad(rep, leaves, upstream, **options)
        of_dyn = torch.autograd.grad(dyn, leaves, upstream, **options)
        for i in range(4):
            own, other = (of_rep, of_dyn) if i < 2 else (of_dyn, of_rep)
            torch.testing.assert_close(own[i], expected[i])
            assert (other[i] == 0).all()
        both = torch.autograd.grad((0.5 * dyn + 0.1 * rep).sum(), leaves)
        alone = torch.autograd.grad((kl * above).sum(), leaves)
        for weight, found, wanted in zip((0.1, 0.1, 0.5, 0.5), both, alone, strict=True):
            torch.testing.assert_close(found, weight * wanted)

    def test_the_kl_is_computed_once(self, monkeypatch, device):
        leaves = tensors(*[(4, 3)] * 4, device=device)
        ran = launches.watch(monkeypatch)
        _, rep = balanced_kl(*leaves, impl=KERNELS)
        assert ran == ["gaussian_kl"]
        rep.sum().backward()
        assert ran[1:] == ["gaussian_kl_backward"]
        assert leaves[2].grad is None

    @IMPL
    def test_nan_is_seen(self, impl, device):
        mu, zero = torch.full((2, 3), math.nan, device=device), torch.zeros(2, 3, device=device)
        mu.requires_grad_()
        _, rep = balanced_kl(mu, zero, zero, zero, impl=impl)
        assert rep.isnan().all()
        assert torch.autograd.grad(rep.sum(), mu)[0].isnan().all()

    def test_compiled(self):
        torch.compiler.reset()
        leaves = tensors(*[(4, 3)] * 4)
        compiled = torch.compile(balanced_kl, backend="aot_eager", fullgraph=True)
        for a, b in zip(compiled(*leaves), balanced_kl(*leaves), strict=True):
            torch.testing.assert_close(a, b)
