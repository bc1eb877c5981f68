"""Operands of several dtypes: each is read in its own, and results are of the widest."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal

import fused_elbo
from fused_elbo import elbo_loss
from fused_elbo.distributions import DiagonalNormal
from helpers.machine import KERNELS
from helpers.oracle import OPS, random_values, upstream

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
# Dtypes of the first argument, the second, and so on; they repeat where there are more.
MIXES = [(BF16, F32), (F32, BF16), (F32, F64), (F64, F16), (F16, BF16, F32), (BF16, F64, F32, F16)]
ROUNDING = {F16: 2e-3, BF16: 2e-2, F32: 1e-5, F64: 1e-9}


def mixed(values, mix):
    return [v.to(mix[i % len(mix)]).requires_grad_() for i, v in enumerate(values)]


@IMPLS
@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("op", OPS, ids=repr)
def test_values_and_gradients(op, mix, impl, device, monkeypatch):
    """As of the same numbers in the widest dtype, or in float32, at the same noise."""
    draw = "fused_elbo.estimators.reference.reference.standard_normal"
    monkeypatch.setattr(draw, lambda shape, like, _=None: torch.randn(shape, dtype=F64).to(like))
    generator = torch.Generator().manual_seed(5)
    values = [random_values(a, (3, 5), generator).to(device) for a in op.arguments]
    leaves = mixed(values, mix)
    widest = F64 if F64 in [leaf.dtype for leaf in leaves] else F32
    wide = [leaf.detach().to(widest).requires_grad_() for leaf in leaves]
    noise = ROUNDING[F32] if "rsample" in op.name else 0.0  # the reference's too: of mu's dtype
    results = []
    for arguments in (leaves, wide):
        torch.manual_seed(2)
        results.append(op.call(arguments, impl))
    for a, e in zip(*results, strict=True):
        is_sample = a.shape[-2:] == (3, 5)
        assert a.dtype == (leaves[0].dtype if is_sample else widest)
        bar = max(ROUNDING[a.dtype if is_sample else widest], noise)
        torch.testing.assert_close(a.to(widest), e, rtol=bar, atol=bar)
        weights = upstream(e.shape).to(device)
        for leaf, actual, expected in zip(
            leaves,
            torch.autograd.grad(a, leaves, weights.to(a.dtype), True, allow_unused=True),
            torch.autograd.grad(e, wide, weights.to(e.dtype), True, allow_unused=True),
            strict=True,
        ):
            if expected is None:
                assert actual is None
                continue
            assert actual.dtype == leaf.dtype
            bar = max(ROUNDING[leaf.dtype], ROUNDING[a.dtype], noise)
            size = expected.abs().max().item()
            torch.testing.assert_close(actual.to(widest), expected, rtol=0, atol=bar * (size + 1))


@IMPLS
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("recon", "x"), [(BF16, F32), (F32, F64), (F64, F32), (F32, F16)], ids=str)
def test_the_loss_promotes_as_torchs_own(recon, x, reduction, impl, device):
    """The arguments that belong to no likelihood too: kl, mu and logvar."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 5, generator=generator).to(device, recon).requires_grad_()
    data = torch.rand(3, 5, generator=generator).to(device, x)
    kl = torch.rand(3, generator=generator).to(device)
    cross_entropy = F.binary_cross_entropy_with_logits(
        logits.double(), data.double(), reduction="none"
    )
    expected = cross_entropy.sum(1) + kl
    expected = expected.mean() if reduction == "mean" else expected
    loss = elbo_loss(logits, data, kl=kl, reduction=reduction, impl=impl)
    squares = F.mse_loss(logits.detach(), data)  # whose dtype is that of halves too
    assert loss.dtype == torch.promote_types(squares.dtype, F32)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (a,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (e,) = torch.autograd.grad(expected.sum(), logits)
    bar = ROUNDING[recon]
    torch.testing.assert_close(a, e, rtol=bar, atol=bar)
    # The widest of all: kl, or what it is computed from.
    for wider in (kl.double(), kl.to(BF16)):
        loss, nll, term = elbo_loss(
            logits, data, kl=wider, reduction=reduction, return_parts=True, impl=impl
        )
        assert loss.dtype == nll.dtype == term.dtype
        assert loss.dtype == (F64 if F64 in (recon, x, wider.dtype) else F32)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-2, atol=1e-2)
    mu = torch.zeros(3, 2, dtype=BF16, device=device)
    assert elbo_loss(logits, data, mu, mu.double(), impl=impl).dtype == F64


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@IMPLS
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("recon", [BF16, F32, F64], ids=str)
def test_integer_data(dtype, recon, impl, device):
    """Pixels as they come from a file: exact up to 2**24, as float32 holds them."""
    values = torch.tensor([[0, 1, 2], [3, 100, 127]], device=device)
    x, same = values.to(dtype), values.to(F64 if recon == F64 else F32)
    logits = torch.randn(4, 2, 3, device=device).to(recon)
    log_ratio = torch.rand(4, 2, device=device)
    gaussian, laplace, poisson = ({"likelihood": n} for n in ("gaussian", "laplace", "poisson"))
    for call in (
        lambda x: fused_elbo.gaussian_nll(logits[0], x, impl=impl),
        lambda x: fused_elbo.gaussian_nll(logits, x, logits[0], impl=impl),
        lambda x: fused_elbo.laplace_nll(logits[0], x, impl=impl),
        lambda x: fused_elbo.poisson_nll(logits[0], x, impl=impl),
        lambda x: fused_elbo.negative_binomial_nll(logits, x, logits[0, 0], impl=impl),
        lambda x: fused_elbo.multinomial_nll(logits, x, impl=impl),
        lambda x: elbo_loss(logits[0], x, kl=log_ratio[0], **poisson, impl=impl),
        lambda x: elbo_loss(logits[0], x, kl=log_ratio[0], **gaussian, impl=impl),
        lambda x: elbo_loss(logits[0], x, *logits[:2], reduction="none", **laplace, impl=impl),
        lambda x: fused_elbo.iwae_loss(logits, x, log_ratio, **gaussian, impl=impl),
    ):
        torch.testing.assert_close(call(x), call(same), rtol=0, atol=0)
    squares = (logits[0].double() - values).square().sum()
    nll = fused_elbo.gaussian_nll(logits[0], x, impl=impl).double().sum()
    torch.testing.assert_close(nll, squares / 2 + 3 * math.log(2 * math.pi), rtol=1e-4, atol=0)


@IMPLS
@pytest.mark.parametrize("recon", [BF16, F32, F64], ids=str)
def test_bool_data(recon, impl, device):
    """Binary images, as a comparison gives them."""
    x = torch.tensor([[True, False, True], [False, False, True]], device=device)
    logits = torch.randn(4, 2, 3, device=device).to(recon)
    log_ratio = torch.rand(4, 2, device=device)
    same = x.to(F64 if recon == F64 else F32)
    for call in (
        lambda x: fused_elbo.bernoulli_nll(logits[0], x, impl=impl),
        lambda x: fused_elbo.bernoulli_nll(logits, x, impl=impl),
        lambda x: elbo_loss(logits[0], x, kl=log_ratio[0], impl=impl),
        lambda x: elbo_loss(logits[0], x, logits[0], logits[1], reduction="none", impl=impl),
        lambda x: fused_elbo.iwae_loss(logits, x, log_ratio, impl=impl),
    ):
        torch.testing.assert_close(call(x), call(same), rtol=0, atol=0)


@IMPLS
def test_a_distribution_of_two_dtypes(impl, device):
    mu = torch.randn(3, 2, device=device, requires_grad=True)
    logvar = torch.randn(3, 2, dtype=F64, device=device, requires_grad=True)
    q = DiagonalNormal(mu, logvar, impl=impl)
    p = Independent(Normal(mu.double(), (0.5 * logvar).exp()), 1)
    z = q.rsample((4,))
    assert z.dtype == F32
    for value in (z, z.detach().double(), z.detach().to(BF16)):
        actual, expected = q.log_prob(value), p.log_prob(value.double())
        assert actual.dtype == F64
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for a, e in zip(
        torch.autograd.grad(q.log_prob(z.detach().double()).sum(), (mu, logvar)),
        torch.autograd.grad(p.log_prob(z.detach().double()).sum(), (mu, logvar)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
