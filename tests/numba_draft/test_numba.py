"""The CPU kernels against the formulas in float64 and against the reference."""

import itertools
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import oracle
import pytest
import torch

import fused_elbo.kernels.numba as kernels
from fused_elbo.estimators import reference
from fused_elbo.estimators.noise import stream
from fused_elbo.kernels.numba import launch

SHAPES = [(3, 1), (7, 3), (2, 4), (5, 5), (64, 16), (3, 1000), (2, 4097), (0, 4), (300, 2)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SEED = torch.tensor(0x123456789ABCDEF)


def layouts(t):
    """The same values in other places."""
    cols = t.shape[1]
    yield "contiguous", t.contiguous()
    yield "transposed", t.t().contiguous().t()
    yield "sliced", torch.cat((t, t, t), 1)[:, cols : 2 * cols]
    yield "strided columns", torch.stack((t, t), -1).flatten(1)[:, ::2]
    yield "strided rows", torch.stack((t, t), 1).flatten(0, 1)[::2]


def tolerance(dtype):
    return {torch.float32: 3e-6, torch.float64: 2e-6, torch.bfloat16: 1e-2}[dtype]


def check(actual, expected, dtype=torch.float32, scale=None, exact=False):
    """Within a few ulp of the largest magnitude that is summed."""
    assert actual.shape == expected.shape
    if not actual.numel():
        return
    bar = 1e-12 if exact and dtype == torch.float64 else tolerance(dtype)
    scale = expected.abs().max().item() if scale is None else scale
    error = (actual.double() - expected).abs().max().item()
    assert error <= bar * max(scale, 1.0), (error, scale)


def inputs(shape, dtype, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def eps_of(samples, shape, first=0, antithetic=False):
    if antithetic:
        return reference.with_antithetic(stream(SEED.item(), samples // 2, *shape, first=first))
    return stream(SEED.item(), samples, *shape, first=first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prior", [False, True])
def test_gaussian_kl(shape, dtype, prior):
    operands = inputs(shape, dtype, 4)[: 4 if prior else 2] + [None] * (0 if prior else 2)
    wide = oracle.wide(*operands)
    kl, expected = kernels.gaussian_kl(*operands), oracle.gaussian_kl(*wide)
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check(kl, expected, torch.float32 if dtype == torch.bfloat16 else dtype, exact=True)
    check(kl, reference.gaussian_kl(*operands).double())
    dkl = torch.randn(shape[0], dtype=kl.dtype)
    present = [t for t in wide if t is not None]
    gradients = torch.autograd.grad(expected, present, dkl.double())
    for needs in itertools.product([False, True], repeat=len(present)):
        wanted = [g for g, n in zip(gradients, needs, strict=True) if n]
        asked = list(needs) + [False] * (4 - len(present))
        actual = kernels.gaussian_kl_backward(dkl, *operands, asked)
        assert len(actual) == len(wanted)
        for a, e in zip(actual, wanted, strict=True):
            assert a.dtype == dtype
            assert a.is_contiguous()
            check(a, e, dtype, exact=True)


@pytest.mark.parametrize("shape", [(5, 5), (64, 16), (3, 1030)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_do_not_matter(shape, dtype):
    operands = inputs(shape, dtype, 4)
    dkl, dz = torch.randn(shape[0]), torch.randn(shape).to(dtype)
    expected = kernels.rsample_kl(*operands, SEED)
    gradients = kernels.rsample_kl_backward(dz, dkl, *operands, SEED, [True] * 4)
    for cases in zip(*(layouts(t) for t in (*operands, dz)), strict=True):
        name = cases[0][0]
        *moved, moved_dz = (t for _, t in cases)
        for a, e in zip(kernels.rsample_kl(*moved, SEED), expected, strict=True):
            assert torch.equal(a, e), name
        dkls = torch.stack((dkl, dkl), 1).flatten()[::2]
        again = kernels.rsample_kl_backward(moved_dz, dkls, *moved, SEED, [True] * 4)
        for a, e in zip(again, gradients, strict=True):
            assert torch.equal(a, e), name


def test_expanded_operands():
    row, column, number = torch.randn(1, 40), torch.randn(30, 1), torch.randn(1, 1)
    shape = (30, 40)
    for choice in itertools.product([row, column, number], repeat=2):
        mu, logvar = (t.expand(shape) for t in choice)
        full = [t.contiguous() for t in (mu, logvar)]
        assert torch.equal(
            kernels.gaussian_kl(mu, logvar, logvar, mu),
            kernels.gaussian_kl(*full, full[1], full[0]),
        )
        z, _ = kernels.rsample_kl(mu, logvar, None, None, SEED)
        assert torch.equal(z, kernels.rsample_kl(*full, None, None, SEED)[0])
        expanded = torch.ones(()).expand(30)
        a = kernels.gaussian_kl_backward(
            expanded, mu, logvar, None, None, [True, True, False, False]
        )
        b = kernels.gaussian_kl_backward(
            torch.ones(30), *full, None, None, [True, True, False, False]
        )
        assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", [*SHAPES, (2100, 256), (70000, 1)])
def test_noise_is_the_stream(shape):
    zeros = torch.zeros(shape)
    for seed in (0, 5, 2**63 - 1, 0xDEADBEEFCAFE):
        z = kernels.rsample(zeros, zeros, torch.tensor(seed), 2)
        check_noise(z, stream(seed, 2, *shape))
    z, _ = kernels.rsample_log_ratio(
        zeros, zeros, None, None, SEED, 2**31 + 3, 4, "total", True, True
    )
    check_noise(z, eps_of(4, shape, first=2**31 + 3, antithetic=True))


def check_noise(z, expected):
    assert not z.numel() or (z - expected).abs().max().item() < 2e-6


def test_noise_against_float64():
    """Largest absolute error about 1e-6, of the normals that belong to the float32 uniforms."""
    from fused_elbo.estimators import noise

    rows, cols = 4000, 256
    zeros = torch.zeros(rows, cols)
    z = kernels.rsample(zeros, zeros, torch.tensor(3), 1)[0].double()
    row, group = torch.arange(rows).view(-1, 1), torch.arange(cols // 4).view(1, -1)
    words = noise.philox(torch.broadcast_tensors(group, row, row * 0, row * 0), (3, 0))

    def box_muller(a, b):
        u = ((a.float() + 1) * 2.0**-32).double()
        angle = (b - (b >> 31 << 32)).double() * (math.pi * 2.0**-31)
        radius = torch.sqrt(-2 * torch.log(u))
        return radius * torch.cos(angle), radius * torch.sin(angle)

    a, b, c, d = words
    expected = torch.stack((*box_muller(a, b), *box_muller(c, d)), -1).flatten(-2)
    assert (z - expected).abs().max().item() < 1.2e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prior", [False, True])
def test_rsample_kl(shape, dtype, prior):
    operands = inputs(shape, dtype, 4)[: 4 if prior else 2] + [None] * (0 if prior else 2)
    wide = oracle.wide(*operands)
    eps = eps_of(1, shape)[0].double()
    z, kl = kernels.rsample_kl(*operands, SEED)
    expected = oracle.sample(*wide[:2], eps), oracle.gaussian_kl(*wide)
    assert z.dtype == dtype
    check(z, expected[0], dtype)
    check(kl, expected[1])
    dz, dkl = torch.randn(shape).to(dtype), torch.randn(shape[0], dtype=kl.dtype)
    present = [t for t in wide if t is not None]
    for some_dz, some_dkl in ((dz, dkl), (dz, None), (None, dkl), (None, None)):
        loss = sum(
            (e * g.double()).sum()
            for e, g in zip(expected, (some_dz, some_dkl), strict=True)
            if g is not None
        )
        loss = loss + 0.0 * sum(t.sum() for t in present)
        gradients = torch.autograd.grad(loss, present, retain_graph=True)
        for needs in itertools.product([False, True], repeat=len(present)):
            wanted = [g for g, n in zip(gradients, needs, strict=True) if n]
            asked = list(needs) + [False] * (4 - len(present))
            actual = kernels.rsample_kl_backward(some_dz, some_dkl, *operands, SEED, asked)
            for a, e in zip(actual, wanted, strict=True):
                assert a.dtype == dtype
                assert a.is_contiguous()
                check(a, e, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 3])
def test_rsample(shape, dtype, samples):
    mu, logvar = inputs(shape, dtype, 2)
    wide = oracle.wide(mu, logvar)
    z, expected = kernels.rsample(mu, logvar, SEED, samples), eps_of(samples, shape).double()
    expected = oracle.sample(*wide, expected)
    assert z.dtype == dtype
    check(z, expected, dtype)
    dz = torch.randn(samples, *shape).to(dtype)
    gradients = torch.autograd.grad(expected, wide, dz.double())
    for needs in itertools.product([False, True], repeat=2):
        actual = kernels.rsample_backward(dz, logvar, SEED, list(needs))
        for a, e in zip(
            actual, [g for g, n in zip(gradients, needs, strict=True) if n], strict=True
        ):
            assert a.dtype == dtype
            check(a, e, dtype)
    expanded = torch.ones(()).expand(samples, *shape)
    a = kernels.rsample_backward(expanded, logvar, SEED, [True, True])
    b = kernels.rsample_backward(expanded.contiguous(), logvar, SEED, [True, True])
    assert all(torch.equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 1), (5, 5), (20, 16), (2, 2050), (0, 4)])
@pytest.mark.parametrize("prior", ["standard", "learned", "flat"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_rsample_log_ratio(shape, dtype, prior, antithetic):
    operands = [0.5 * t for t in inputs(shape, dtype, 4)]
    operands = operands if prior == "learned" else [*operands[:2], None, None]
    wide, samples, flat = oracle.wide(*operands), 4, prior == "flat"
    eps = eps_of(samples, shape, first=2, antithetic=antithetic).double()
    options = (SEED, 2, samples)
    z, log_ratio = kernels.rsample_log_ratio(*operands, *options, "total", flat, antithetic)
    expected = oracle.log_ratio(*wide, eps, flat)
    check(z, expected[0], dtype)
    check(log_ratio, expected[1], scale=shape[1] * 4)
    twin = reference.log_ratio_at(eps.to(dtype), *operands, flat=flat)
    check(log_ratio, twin[1].double(), scale=shape[1] * 4)
    dz = torch.randn(samples, *shape).to(dtype)
    dlr = torch.rand(samples, shape[0]).to(dtype)
    needs = [True, True, prior == "learned", prior == "learned"]
    for gradient in ("total", "path", "dreg"):
        wanted = oracle.log_ratio_gradients(
            dz.double(), dlr.double(), *wide, eps, gradient, flat, needs
        )
        actual = kernels.rsample_log_ratio_backward(
            dz, dlr, *operands, *options, gradient, flat, antithetic, needs
        )
        for a, e in zip(actual, wanted, strict=True):
            assert a.dtype == dtype
            check(a, e, scale=30)
        again = reference.log_ratio_at(
            eps.to(dtype), *(t.requires_grad_() if t is not None else t for t in operands),
            gradient=gradient, flat=flat,
        )  # fmt: skip
        leaves = [t for t in operands if t is not None]
        twins = torch.autograd.grad(again, leaves, (dz, dlr))
        operands = [None if t is None else t.detach() for t in operands]
        for a, e in zip(actual, twins, strict=True):
            check(a, e.double(), scale=30)
        for some in itertools.product([False, True], repeat=2):
            subset = kernels.rsample_log_ratio_backward(
                dz, dlr, *operands, *options, gradient, flat, antithetic,
                [*some, False, False],
            )  # fmt: skip
            chosen = [a for a, n in zip(actual[:2], some, strict=True) if n]
            assert all(torch.equal(*pair) for pair in zip(subset, chosen, strict=True))
        only_z = kernels.rsample_log_ratio_backward(
            dz, None, *operands, *options, gradient, flat, antithetic, needs
        )
        no_z = kernels.rsample_log_ratio_backward(
            None, dlr, *operands, *options, gradient, flat, antithetic, needs
        )
        if gradient != "dreg":
            for a, b, e in zip(only_z, no_z, wanted, strict=True):
                check(a.double() + b.double(), e, scale=30)
        for g in kernels.rsample_log_ratio_backward(
            None, None, *operands, *options, gradient, flat, antithetic, needs
        ):
            assert not g.count_nonzero()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("mode", ["value", "row", "element"])
def test_gaussian_nll(shape, dtype, samples, mode):
    rows, cols = shape
    (x,), (recon, logvar) = (
        inputs(shape, dtype, 1),
        inputs((samples * rows, cols), dtype, 2, seed=1),
    )
    logvar = {"value": None, "row": logvar[:, :1], "element": logvar}[mode]
    wide = oracle.wide(recon, x, logvar)
    for sign in (1, -1):
        nll = kernels.gaussian_nll(recon, x, logvar, 0.3, sign)
        if not rows:
            assert nll.shape == (0,)
            continue
        expected = oracle.gaussian_nll(*wide, 0.3, sign)
        check(nll, expected, torch.float32 if dtype == torch.bfloat16 else dtype, exact=True)
        dnll = torch.randn(samples * rows, dtype=nll.dtype)
        present = [t for t in wide if t is not None]
        gradients = torch.autograd.grad(expected, present, dnll.double())
        for needs in itertools.product([False, True], repeat=len(present)):
            wanted = [g for g, n in zip(gradients, needs, strict=True) if n]
            asked = list(needs) + [False] * (3 - len(present))
            actual = kernels.gaussian_nll_backward(dnll, recon, x, logvar, 0.3, sign, asked)
            for a, e in zip(actual, wanted, strict=True):
                assert a.dtype == dtype
                assert a.is_contiguous()
                check(a, e, dtype, exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_bernoulli_nll(shape, dtype, samples, probabilities):
    rows, cols = shape
    recon = 3 * torch.randn(samples * rows, cols)
    recon = (recon.sigmoid().clamp(0.01, 0.99) if probabilities else recon).to(dtype)
    x = torch.rand(shape).to(dtype)
    wide = oracle.wide(recon, x)
    nll = kernels.bernoulli_nll(recon, x, probabilities)
    if not rows:
        assert nll.shape == (0,)
        return
    expected = oracle.bernoulli_nll(*wide, probabilities)
    check(nll, expected, torch.float32 if dtype == torch.bfloat16 else dtype, exact=True)
    dnll = torch.randn(samples * rows, dtype=nll.dtype)
    gradients = torch.autograd.grad(expected, wide, dnll.double())
    for needs in itertools.product([False, True], repeat=2):
        wanted = [g for g, n in zip(gradients, needs, strict=True) if n]
        actual = kernels.bernoulli_nll_backward(dnll, recon, x, probabilities, list(needs))
        for a, e in zip(actual, wanted, strict=True):
            assert a.dtype == dtype
            assert a.is_contiguous()
            check(a, e, dtype, exact=True)


def test_one_row_of_x_goes_with_many_of_recon():
    recon, x, dnll = torch.randn(50, 20), torch.rand(1, 20), torch.randn(50)
    wide = oracle.wide(recon, x)
    expected = oracle.bernoulli_nll(*wide, False)
    check(kernels.bernoulli_nll(recon, x, False), expected)
    for a, e in zip(
        kernels.bernoulli_nll_backward(dnll, recon, x, False, [True, True]),
        torch.autograd.grad(expected, wide, dnll.double()),
        strict=True,
    ):
        check(a, e)


def test_probabilities_are_clamped_as_torch_does_it():
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1e-40, 1e-13, 1 - 2**-24, 0.5]]).repeat(2, 1)
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.3, 0.7, 0.2, 1.0]]).repeat(2, 1)
    leaves = p.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.nn.functional.binary_cross_entropy(*leaves, reduction="none").sum(-1)
    torch.testing.assert_close(kernels.bernoulli_nll(p, x, True), expected)
    gradients = torch.autograd.grad(expected, leaves, torch.ones(2))
    actual = kernels.bernoulli_nll_backward(torch.ones(2), p, x, True, [True, True])
    torch.testing.assert_close(actual[0], gradients[0])
    exact = torch.log1p(-p.double()) - p.double().log()
    torch.testing.assert_close(actual[1].double(), exact, rtol=1e-5, atol=1e-6)
    for bad_p, bad_x in ((-0.1, 0.5), (1.1, 0.5), (0.5, 1.1), (0.5, -0.1), (math.nan, 0.5)):
        row = torch.full((1, 3), 0.5), torch.full((1, 3), 0.5)
        row[0][0, 1], row[1][0, 1] = bad_p, bad_x
        assert kernels.bernoulli_nll(*row, True).isnan().all()
        for g in kernels.bernoulli_nll_backward(torch.ones(1), *row, True, [True, True]):
            assert g.isnan().tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95, 1.0, -1.0, 2.0])
@pytest.mark.parametrize("shape", [(1, 3), (5, 64), (50, 7), (300, 1), (8, 1000), (4, 0)])
@pytest.mark.parametrize("with_nll", [False, True])
def test_importance_weights(dtype, alpha, shape, with_nll):
    log_ratio, nll = (2 * t for t in inputs(shape, dtype, 2))
    nll = nll if with_nll else None
    log_weights = log_ratio.double() - (nll.double() if with_nll else 0.0)
    for moved in (log_ratio, log_ratio.t().contiguous().t()):
        bound, weights, ess, *rest = kernels.importance_weights(moved, nll, alpha)
        for a, e in zip(
            (bound, weights, ess), oracle.importance_weights(log_weights, alpha), strict=True
        ):
            check(a, e, scale=10)
        assert len(rest) == with_nll
        for a in rest:
            check(a, log_weights, scale=10)


def test_importance_weights_at_the_limits():
    inf, nan = math.inf, math.nan
    columns = [[-inf, -inf, -inf], [inf, 0.0, inf], [-inf, 0.0, 1.0], [nan, 0.0, 1.0], [-200.0] * 3]
    columns += [[3e38, -3e38, 0.0], [1e-6, 0.0, -1e-6]]
    log_weights = torch.tensor(columns).t()
    for alpha in (0.0, 0.5, 0.9):
        bound, weights, ess = kernels.importance_weights(log_weights, None, alpha)
        expected = reference.importance_weights(log_weights, alpha)
        torch.testing.assert_close(bound, expected[0], equal_nan=True)
        torch.testing.assert_close(weights, expected[1], equal_nan=True)
        torch.testing.assert_close(ess, expected[2], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("likelihood", ["gaussian", "row", "value", "bernoulli", "probabilities"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("with_kl", [False, True])
def test_elbo_loss(dtype, likelihood, samples, with_kl):
    rows, cols, beta, scale = 6, 37, 0.7, 1 / 6
    x = torch.rand(rows, cols).to(dtype)
    recon, logvar = (torch.rand(2, samples * rows, cols) * 0.98 + 0.01).to(dtype)
    logvar = {"gaussian": logvar, "row": logvar[:, :1]}.get(likelihood)
    kl = torch.rand(rows) if with_kl else None
    wide = oracle.wide(recon, x, logvar)
    bernoulli = likelihood in ("bernoulli", "probabilities")
    name = likelihood if bernoulli else "gaussian"
    if bernoulli:
        values = oracle.bernoulli_nll(*wide[:2], likelihood == "probabilities")
    else:
        values = oracle.gaussian_nll(*wide, -0.4, 1)
    nll = values.sum() * scale / samples
    total = kl.double().sum() * scale if with_kl else torch.zeros((), dtype=torch.float64)
    present = [t for t in wide if t is not None]
    gradients = torch.autograd.grad(nll, present)
    for needs in itertools.product([False, True], repeat=len(present)):
        asked = list(needs) + [False] * (3 - len(present))
        outputs = kernels.elbo_loss(recon, x, logvar, -0.4, kl, name, beta, scale, asked)
        wanted = [g for g, n in zip(gradients, needs, strict=True) if n]
        for a, e in zip(outputs[:3], (nll + beta * total, nll, total), strict=True):
            check(a, e.detach())
        for a, e in zip(outputs[3:], wanted, strict=True):
            assert a.dtype == dtype
            check(a, e, dtype)


def test_scale():
    tensor = torch.randn(3, 4)
    expected = tensor * 2.5
    kernels.scale_(tensor, torch.tensor(2.5))
    assert torch.equal(tensor, expected)
    half = torch.randn(100).bfloat16()
    expected = (half.float() * 1.2345678).bfloat16()
    kernels.scale_(half, torch.tensor(1.2345678))
    assert torch.equal(half, expected)


EXTREMES = [-80.0, -30.0, -1e-4, 0.0, 1e-4, 30.0, 80.0]


@pytest.mark.parametrize("mu", [0.0, 1e-3, 5.0, -1e4])
def test_extremes_are_as_accurate_as_the_reference(mu):
    logvar = torch.tensor(EXTREMES)[:, None].expand(7, 9)
    means = torch.full_like(logvar, mu)
    for prior in ((None, None), (torch.zeros(7, 9), logvar.flip(0))):
        exact = oracle.gaussian_kl(
            *(None if t is None else t.double() for t in (means, logvar, *prior))
        )
        kl, eager = (f(means, logvar, *prior) for f in (kernels.gaussian_kl, reference.gaussian_kl))
        assert (kl >= 0).all()
        assert kl.isfinite().tolist() == eager.isfinite().tolist()
        fine = eager.isfinite()
        error, bar = (kl - exact).abs()[fine], (eager - exact).abs()[fine]
        assert (error <= 2 * bar + 1e-6 * exact[fine] + 1e-12).all()
        z, again = kernels.rsample_kl(means, logvar, *prior, SEED)
        assert torch.equal(again, kl)
        assert z.isfinite().all()
    for x in (0.0, 3.0):
        tensors = (means, torch.full_like(means, x), logvar)
        exact = oracle.gaussian_nll(*(t.double() for t in tensors), 0.0, 1)
        nll = kernels.gaussian_nll(*tensors, 0.0, 1)
        fine = exact < 1e38
        torch.testing.assert_close(nll[fine].double(), exact[fine], rtol=1e-5, atol=1e-5)


def test_kl_near_the_prior_is_accurate_and_not_negative():
    logvar = torch.linspace(-0.6, 0.6, 100_001)[:, None]
    for scale in (1.0, 1e-2, 1e-4, 1e-8, 1e-20):
        kl = kernels.gaussian_kl(torch.zeros_like(logvar), scale * logvar, None, None)
        exact = oracle.gaussian_kl(torch.zeros_like(logvar).double(), (scale * logvar).double())
        assert (kl >= 0).all()
        if scale >= 1e-2:
            exact = (scale * logvar[:, 0]).double()
            exact = 0.5 * (torch.expm1(exact) - exact)
            keep = exact > 1e-6
            assert ((kl[keep] - exact[keep]) / exact[keep]).abs().max() < 1e-6
        elif scale == 1e-4:
            exact = 0.25 * (scale * logvar[:, 0]).double().square()
            assert ((kl - exact).abs() <= 1e-4 * exact + 1e-30).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_come_out(value):
    for index in range(4):
        operands = inputs((5, 20), torch.float32, 4)
        operands[index][2, 7] = value
        kl, expected = kernels.gaussian_kl(*operands), reference.gaussian_kl(*operands)
        torch.testing.assert_close(kl, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    for index in range(3):
        operands = inputs((5, 20), torch.float32, 3)
        operands[index][2, 7] = value
        nll, expected = kernels.gaussian_nll(*operands, 0.0, 1), reference.gaussian_nll(*operands)
        torch.testing.assert_close(nll, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    logits, x = torch.randn(5, 20), torch.full((5, 20), 0.5)
    logits[2, 7] = value
    nll = kernels.bernoulli_nll(logits, x, False)
    assert nll[2].isnan() if math.isnan(value) else nll[2] == math.inf  # torch: NaN at -inf
    assert nll[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("cols", [100_000, 5_000_000])
def test_a_single_huge_row(cols):
    mu, logvar = torch.randn(1, cols), torch.randn(1, cols)
    exact = oracle.gaussian_kl(mu.double(), logvar.double())
    eager = reference.gaussian_kl(mu, logvar)
    error = (kernels.gaussian_kl(mu, logvar, None, None) - exact).abs().item()
    assert error <= 2 * (eager - exact).abs().item() + 1e-7 * exact.item()


def test_sums_are_as_accurate_as_torchs():
    for shape in ((64, 1024), (16, 10_000), (4, 300_000)):
        recon, x = torch.rand(shape) + 1, torch.rand(shape)
        exact = oracle.gaussian_nll(recon.double(), x.double(), None, 0.0, 1)
        error = (kernels.gaussian_nll(recon, x, None, 0.0, 1) - exact).abs().max()
        torch_error = (reference.gaussian_nll(recon, x) - exact).abs().max()
        assert error <= 1.5 * torch_error + 1e-7 * exact.max(), (shape, error, torch_error)


def test_mixed_dtypes():
    mu, logvar = torch.randn(8, 12), torch.randn(8, 12).bfloat16()
    torch.testing.assert_close(
        kernels.gaussian_kl(mu, logvar, None, None),
        kernels.gaussian_kl(mu, logvar.float(), None, None),
    )
    a, b = kernels.gaussian_kl_backward(
        torch.ones(8), mu, logvar, None, None, [True, True, False, False]
    )
    assert (a.dtype, b.dtype) == (torch.float32, torch.bfloat16)
    wide = kernels.gaussian_kl(mu.double(), logvar, None, None)
    assert wide.dtype == torch.float64
    exact = oracle.gaussian_kl(mu.double(), logvar.double())
    assert (wide - exact).abs().max() < 1e-12
    z, _ = kernels.rsample_kl(logvar, mu, None, None, SEED)
    assert z.dtype == torch.bfloat16


def test_bfloat16_is_rounded_to_nearest_even():
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)[:, None]
    zero = torch.zeros_like(values).bfloat16()
    # z = mu + exp(-inf) eps
    z, _ = kernels.rsample_kl(
        values.bfloat16(), torch.full_like(values, -math.inf), None, None, SEED
    )
    assert torch.equal(z.nan_to_num(7.0), values.bfloat16().nan_to_num(7.0))
    (dmu,) = kernels.gaussian_kl_backward(
        values[:, 0], torch.ones_like(zero), zero, None, None, [True, False, False, False]
    )
    assert torch.equal(dmu.nan_to_num(7.0), values.bfloat16().nan_to_num(7.0))
    assert torch.equal(dmu.isnan(), values.isnan())


def test_float16_is_refused_clearly():
    half = torch.randn(3, 4).half()
    with pytest.raises(TypeError, match="float16"):
        kernels.gaussian_kl(half, half, None, None)


def many_inputs():
    generator = torch.Generator().manual_seed(4)
    tensors = [torch.randn(1001, 100, generator=generator) for _ in range(5)]
    row = torch.randn(1001, generator=generator)
    return *tensors, row, torch.stack((tensors[4], tensors[0])), torch.stack((row, row))


def every_result(a, b, c, d, e, row, both, rows):
    """All ops at sizes where several threads work."""
    yes, options = [True] * 4, (SEED, 0, 2)
    yield kernels.gaussian_kl(a, b, c, d)
    yield from kernels.gaussian_kl_backward(row, a, b, c, d, yes)
    yield from kernels.rsample_kl(a, b, c, d, SEED)
    yield from kernels.rsample_kl_backward(e, row, a, b, c, d, SEED, yes)
    yield from kernels.rsample_log_ratio(a, b, c, d, *options, "total", False, False)
    yield from kernels.rsample_log_ratio_backward(
        both, rows, a, b, c, d, *options, "dreg", False, False, yes
    )
    yield kernels.gaussian_nll(a, b, c, 0.0, 1)
    yield from kernels.gaussian_nll_backward(row, a, b, c, 0.0, 1, yes[:3])
    yield kernels.bernoulli_nll(a, b, False)
    yield from kernels.bernoulli_nll_backward(row, a, b, False, yes[:2])
    yield from kernels.importance_weights(a, b, 0.3)
    yield from kernels.elbo_loss(a, b, c, 0.0, row, "gaussian", 1.0, 1.0, yes[:3])


@pytest.fixture
def threads(monkeypatch):
    """Sets torch's number of threads, with no operation too small for all of them."""
    monkeypatch.setattr(launch, "PARALLEL", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    threads(1)
    inputs = many_inputs()
    expected = list(every_result(*inputs))
    for number in (2, 3, 7):
        threads(number)
        for a, e in zip(every_result(*inputs), expected, strict=True):
            assert torch.equal(a, e)
        assert torch.get_num_threads() == number


def test_eight_threads_at_once(threads):
    threads(2)
    inputs = many_inputs()
    expected, failures = list(every_result(*inputs)), []

    def work():
        for _ in range(5):
            same = (torch.equal(*p) for p in zip(every_result(*inputs), expected, strict=True))
            if not all(same):
                failures.append(1)

    running = [threading.Thread(target=work) for _ in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failures


def _child(queue, inputs, expected):
    # No torch operation that is large enough for OpenMP, which hangs in a forked child.
    before = threading.active_count()
    pairs = zip(every_result(*inputs), expected, strict=True)
    same = all((a.numpy() == e.numpy()).all() for a, e in pairs)
    queue.put((bool(same), threading.active_count() - before))


def test_a_forked_child_works_alone(threads):
    threads(2)
    inputs = many_inputs()
    expected = list(every_result(*inputs))
    assert launch.Pool.executor is not None
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_child, args=(queue, inputs, expected))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive
    assert child.exitcode == 0
    assert queue.get() == (True, 0)


WITHOUT_A_FOLDER = """
import os, torch
import numba.core.caching as caching
for locator in caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(lambda cls, function, file: None)
import fused_elbo.kernels.numba as kernels
assert kernels.gaussian_kl(torch.ones(2, 3), torch.zeros(2, 3), None, None).tolist() == [1.5, 1.5]
"""


def test_no_writable_folder():
    subprocess.run([sys.executable, "-c", WITHOUT_A_FOLDER], check=True)


def test_machine_code_on_disk_follows_all_sources(tmp_path):
    """A change in another file than the kernel's is seen."""
    source = Path(kernels.__file__).parent
    shutil.copytree(source, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import torch, copied; print(copied.gaussian_kl(torch.ones(1, 2), torch.zeros(1, 2),"
        " None, None).item())"
    )

    def run():
        folder = str(tmp_path / "cache")
        environment = dict(os.environ, PYTHONPATH=str(tmp_path), NUMBA_CACHE_DIR=folder)
        command = [sys.executable, "-c", program]
        return float(
            subprocess.run(command, env=environment, check=True, capture_output=True).stdout
        )

    assert run() == 1.0
    assert list((tmp_path / "cache").rglob("*.nbi"))
    memory = tmp_path / "copied" / "memory.py"
    memory.write_text(memory.read_text().replace("total += values[i]", "total += 3.0 * values[i]"))
    assert run() == pytest.approx(3.0)


MACHINE_CODE = """
import re, sys
sys.path.insert(0, {here!r})
import numba, torch
from test_numba import every_result, many_inputs
from fused_elbo.kernels.numba import compiler
list(every_result(*many_inputs()))
called = re.compile(r"movabsq\\s+\\$(\\w+)|callq?\\s+(\\w+)")
libm = {{"exp", "expm1", "log", "log1p", "sin", "cos", "sqrt", "fma"}}
libm |= {{name + "f" for name in libm}}
seen = 0
for name, module in list(sys.modules.items()):
    if name.startswith("fused_elbo.kernels.numba."):
        for function in vars(module).values():
            if not isinstance(function, numba.core.dispatcher.Dispatcher):
                continue
            for signature, code in function.inspect_asm().items():
                names = {{a or b for a, b in called.findall(code)}}
                assert not names & libm, (function, names & libm)
                loop = function._compiler.pipeline_class is compiler.Restrict
                if loop and "Array(float64" not in str(signature):
                    packed = re.search(r"v(p?(mul|add|sub|div)|fn?m|cvt)\\w*\\s.*%[yz]mm", code)
                    assert packed or function.__name__ == "fill", (function, signature)
                    seen += 1
print(seen)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
def test_loops_are_packed_and_call_nothing(tmp_path):
    """Of every float32 loop; a fresh cache, for what comes from one cannot be read."""
    program = MACHINE_CODE.format(here=str(Path(__file__).parent))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 25


def test_an_import_of_the_package_imports_no_numba():
    program = "import sys, fused_elbo; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
