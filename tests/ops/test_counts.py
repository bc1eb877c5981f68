"""Likelihoods of counts: digits against mpmath, values against scipy, layouts, what is no count.

``test_likelihoods.py`` has what holds for any likelihood.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from fused_elbo import (
    elbo_loss,
    multinomial_nll,
    negative_binomial_nll,
    poisson_nll,
    softmax_negative_binomial_nll,
)
from helpers.accuracy import ATOL, LAYOUTS, lay, rounding
from helpers.machine import KERNELS

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=str)


def exact_poisson(x, m):
    """(nll, its slope in m) to 40 digits."""
    x, m = mpmath.mpf(x), mpmath.mpf(m)
    mu = mpmath.exp(m)
    nll = mu - x * m + mpmath.loggamma(x + 1)
    return nll, mu - x


def exact_negative_binomial(x, m, a, z=None):
    """(nll, its slopes in m, a and z) to 40 digits."""
    x, m, a = (mpmath.mpf(value) for value in (x, m, a))
    theta, mu = mpmath.exp(a), mpmath.exp(m)
    of_zero = theta * mpmath.log1p(mu / theta)
    nll = of_zero + x * mpmath.log1p(theta / mu)
    nll -= mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    dm = theta * (mu - x) / (theta + mu)
    da = of_zero - dm - theta * (mpmath.digamma(x + theta) - mpmath.digamma(theta))
    if z is None:
        return nll, dm, da
    inflation = 1 / (1 + mpmath.exp(-mpmath.mpf(z)))
    if x:
        return nll - mpmath.log1p(-inflation), dm, da, inflation
    likelihood = inflation + (1 - inflation) * mpmath.exp(-nll)
    genuine = (1 - inflation) * mpmath.exp(-nll) / likelihood
    dz = -inflation * (1 - inflation) * -mpmath.expm1(-nll) / likelihood
    return -mpmath.log(likelihood), genuine * dm, genuine * da, dz


def eager_negative_binomial(x, m, a, z=None):
    """scvi-tools' formula: what sets the error that the kernels are allowed twice of."""
    theta, mu = a.exp(), m.exp()
    log_sum = torch.log(theta + mu)
    nll = -theta * (a - log_sum) - x * (m - log_sum)
    nll = nll + torch.lgamma(theta) + torch.lgamma(x + 1) - torch.lgamma(x + theta)
    if z is None:
        return nll
    zero = F.softplus(z) - F.softplus(z + theta * (log_sum - a)) + theta * (log_sum - a)
    return torch.where(x == 0, zero, nll + F.softplus(z))


def draws(kind, size, dtype):
    """(x, m, a): dispersions from 1e-6 to 1e8, means from 1e-9 to 1e5, counts up to 1e5."""
    random = np.random.default_rng(7)
    a = random.uniform(math.log(1e-6), math.log(1e8), size)
    m = random.uniform(math.log(1e-9), math.log(1e5), size)
    x = np.exp(random.uniform(math.log(0.01), math.log(1e5), size))
    if kind == "zeros":
        x = 0 * x
    if kind == "few":
        x = random.integers(1, 10, size).astype(float)
    if kind == "whole":
        x = np.ceil(x)
    if kind == "likely":  # the mean is near the count, where large terms cancel
        x = np.ceil(x)
        m = np.log(x) + random.normal(size=size) * 10 ** random.uniform(-3, 0, size) / np.sqrt(x)
    if kind == "huge":
        x = np.round(np.exp(random.uniform(math.log(1e5), math.log(1e7), size)))
        m = np.log(x) + random.normal(size=size) / np.sqrt(x)
    # float32 numbers, so that the kernels, eager and mpmath have the same ones
    return [torch.tensor(values, dtype=F32).to(dtype) for values in (x, m, a)]


def one_by_one(values, device):
    """Each element is an example: [N, 1]."""
    return [v[:, None].to(device) for v in values]


def results(function, x, *parameters):
    """[the nll of each element, and its slope in each parameter]."""
    leaves = [p.clone().requires_grad_() for p in parameters]
    value = function(x, *leaves)
    return [t.detach().cpu() for t in (value, *torch.autograd.grad(value.sum(), leaves))]


def assert_digits(found, eager, exact, x, m, impl):
    """At most twice eager's error and ATOL roundings of what is added up, at every element.

    Of the nll that is itself and what one rounding of the mean, or of another argument, makes of
    it; of its slopes the mean and the count. The reference has torch.lgamma below 1, in float64
    below 16: 8 times as many roundings.
    """
    atol = ATOL if impl == KERNELS else 8 * ATOL
    slopes = np.abs(np.array([[float(v) for v in part] for part in exact[1:]])).sum(0)
    exact = [[mpmath.mpf(v) for v in part] for part in exact]
    for what, (f, e, right) in enumerate(zip(found, eager, exact, strict=True)):
        error, allowed = (
            np.array([float(abs(v - r)) for v, r in zip(t.flatten().tolist(), right, strict=True)])
            for t in (f, e)
        )
        size = 1 + np.array([float(abs(r)) for r in right])
        size += x.double().numpy() + m.double().exp().numpy() if what else slopes
        bar = 2 * allowed + atol * rounding(f.dtype) * size
        worst = np.argmax(error - bar)
        assert error[worst] <= bar[worst], (what, worst, error[worst], bar[worst])


KINDS = pytest.mark.parametrize("kind", ["zeros", "few", "whole", "fractions", "likely"])


@IMPLS
@DTYPES
class TestDigits:
    @KINDS
    @pytest.mark.parametrize("inflated", [False, True])
    def test_negative_binomial(self, kind, inflated, dtype, impl, device):
        x, m, a = draws(kind, 300, dtype)
        z = [torch.linspace(-30, 30, 300).to(dtype)] if inflated else []

        def nll(x, m, a, z=None):
            return negative_binomial_nll(m, x, a, zero_logits=z, impl=impl)

        with mpmath.workdps(40):
            exact = [
                exact_negative_binomial(*element)
                for element in zip(*(t.tolist() for t in (x, m, a, *z)), strict=True)
            ]
            assert_digits(
                results(nll, *one_by_one((x, m, a, *z), device)),
                results(eager_negative_binomial, x, m, a, *z),
                list(zip(*exact, strict=True)),
                x,
                m,
                impl,
            )

    @pytest.mark.parametrize("kind", ["zeros", "few", "whole", "fractions", "likely", "huge"])
    def test_poisson(self, kind, dtype, impl, device):
        x, m, _ = draws(kind, 300, dtype)
        with mpmath.workdps(40):
            exact = [
                exact_poisson(*element) for element in zip(x.tolist(), m.tolist(), strict=True)
            ]
            assert_digits(
                results(lambda x, m: poisson_nll(m, x, impl=impl), *one_by_one((x, m), device)),
                results(lambda x, m: m.exp() - x * m + torch.lgamma(x + 1), x, m),
                list(zip(*exact, strict=True)),
                x,
                m,
                impl,
            )

    def test_where_a_poisson_is_likeliest(self, dtype, impl, device):
        """log x! and x log(rate) are 1.5e8 each; the textbook's float32 has 0 for 8.978."""
        for x in (1e5, 1e7):
            rate = torch.tensor([[x]], dtype=dtype, device=device)
            nll = poisson_nll(rate.log(), rate, impl=impl).item()
            assert nll == pytest.approx(0.5 * math.log(2 * math.pi * x), rel=2e-6)

    def test_a_large_dispersion_is_a_poisson(self, dtype, impl, device):
        m = torch.linspace(-9, 9, 200, dtype=dtype, device=device)[:, None]
        x = torch.poisson(m.exp())
        expected = poisson_nll(m, x, impl=impl)
        for a in (25.0, 60.0) if dtype == F32 else (45.0, 300.0):
            torch.testing.assert_close(negative_binomial_nll(m, x, a, impl=impl), expected)

    def test_extreme_logs(self, dtype, impl, device):
        """Finite values come out finite: exp of 80 is, and its square is not."""
        ends = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0], dtype=dtype, device=device)
        m, a = (t.reshape(-1, 1) for t in torch.meshgrid(ends, ends, indexing="ij"))
        for count in (0.0, 3.0, 40.0, 2.5):
            x = torch.full_like(m, count)
            found = results(lambda x, m, a: negative_binomial_nll(m, x, a, impl=impl), x, m, a)
            with mpmath.workdps(120):
                exact = [
                    [float(v) for v in exact_negative_binomial(count, *e)]
                    for e in zip(m[:, 0].tolist(), a[:, 0].tolist(), strict=True)
                ]
            if impl == "reference":  # which differentiates ratios of what is near 1e-35
                found, exact = found[:1], [e[:1] for e in exact]
            for f, e in zip(found, zip(*exact, strict=True), strict=True):
                expected = torch.tensor(e, dtype=F64)
                torch.testing.assert_close(f.flatten().double(), expected, rtol=2e-5, atol=2e-3)


def counts_of(*shape, device="cpu"):
    """Nine in ten are 0; some are large, some are no integers."""
    generator = torch.Generator().manual_seed(3)
    x = torch.poisson(torch.full(shape, 3.0), generator=generator)
    x = x * (torch.rand(shape, generator=generator) < 0.2)
    x.view(-1)[:4] = torch.tensor([40.0, 1000.0, 8.0, 9.0])
    return x.to(device)


def normal(*shape, dtype=F64, device="cpu"):
    return torch.randn(shape, dtype=dtype).to(device)


def by_scipy(x, m, a):
    theta, mu = np.exp(a), np.exp(m)
    return -stats.nbinom.logpmf(x, theta, theta / (theta + mu))


# A tile of several rows; K samples; rows of several tiles, and one column.
LONG = 2100 if KERNELS == "numba" else 1100  # a tile of numba's has 2048 columns, Triton's 1024
SHAPES = [((3, 2, 5), (3, 2, 5)), ((4, 3, 7), (3, 7)), ((2, 2, LONG), (2, LONG)), ((300, 1),) * 2]


@IMPLS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestScipy:
    def test_negative_binomial(self, shape, impl, device):
        m, x = normal(*shape[0]), counts_of(*shape[1])
        event = (1,) * (x.dim() - 1)
        for a in (
            0.3,
            normal(),
            normal(shape[1][0], *event),
            normal(*shape[1][1:]),
            normal(*shape[1]),
            normal(*shape[0]),
        ):
            value = negative_binomial_nll(
                m.to(device),
                x.to(device),
                a.to(device) if isinstance(a, torch.Tensor) else a,
                impl=impl,
            )
            terms = by_scipy(x.numpy(), m.numpy(), np.asarray(a))
            expected = terms.reshape(*m.shape[: m.dim() - x.dim() + 1], -1).sum(-1)
            np.testing.assert_allclose(value.cpu().numpy(), expected, rtol=1e-10)

    def test_multinomial(self, shape, impl, device):
        logits, x = 2 * normal(*shape[0]), counts_of(*shape[1])
        value = multinomial_nll(logits.to(device), x.to(device), impl=impl).cpu().numpy()
        flat = logits.flatten(1 - x.dim()).softmax(-1).numpy()
        for index in np.ndindex(value.shape):
            counts = x[index[-1]].flatten().numpy()
            expected = -stats.multinomial.logpmf(counts, int(counts.sum()), flat[index])
            assert value[index] == pytest.approx(expected, rel=1e-9, abs=1e-9)


# How log_theta may be broadcast to log_mean [2, 3, 40], of x [3, 40].
FORMS = {
    "scalar": (),
    "column": (40,),
    "row": (3, 1),
    "sample": (2, 1, 1),
    "x": (3, 40),
    "element": (2, 3, 40),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inflated", [None, "element", "column"])
def test_gradients_of_every_form(form, inflated, device):
    """Against autograd through the reference in float64, all of them and each alone."""
    m, x = normal(2, 3, 40, dtype=F32, device=device), counts_of(3, 40, device=device)
    leaves = [m, normal(*FORMS[form], dtype=F32, device=device)]
    if inflated:
        leaves.append(normal(*FORMS[inflated], dtype=F32, device=device))
    weight = normal(2, 3, dtype=F32, device=device)

    def gradients(leaves, impl):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        m, a, *z = leaves
        value = negative_binomial_nll(m, x, a, zero_logits=z[0] if z else None, impl=impl)
        return torch.autograd.grad((value * weight).sum(), leaves)

    expected = gradients([leaf.double() for leaf in leaves], "reference")
    found = gradients(leaves, KERNELS)
    for f, e, leaf in zip(found, expected, leaves, strict=True):
        assert f.dtype == F32
        assert f.shape == leaf.shape
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-4)
    for position, leaf in enumerate(leaves):
        alone = [other.detach() for other in leaves]
        alone[position] = leaf.clone().requires_grad_()
        m, a, *z = alone
        value = negative_binomial_nll(m, x, a, zero_logits=z[0] if z else None, impl=KERNELS)
        (f,) = torch.autograd.grad((value * weight).sum(), alone[position])
        torch.testing.assert_close(f, found[position], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 200])
def test_one_dispersion_for_all_examples(rows, device):
    """Its gradient is a sum over rows that several programs and threads share."""
    m, x = normal(rows, 300, dtype=F32, device=device), counts_of(rows, 300, device=device)
    a = normal(300, dtype=F32, device=device).requires_grad_()
    wide = a.detach().double().requires_grad_()
    loss = elbo_loss(m, x, kl=m[:, 0], likelihood="negative_binomial", log_theta=a, impl=KERNELS)
    exact = negative_binomial_nll(m.double(), x, wide, impl="reference").mean()
    (found,), (expected,) = torch.autograd.grad(loss, a), torch.autograd.grad(exact, wide)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64], ids=str)
def test_layouts_and_dtypes(layout, dtype, device):
    values = normal(6, 70), normal(6, 70), normal(6, 70), counts_of(6, 70).double()
    m, a, z, x = (
        lay(v.to(dtype), layout)[1](lay(v.to(dtype), layout)[0]).to(device) for v in values
    )
    leaves = [t.detach().requires_grad_() for t in (m, a, z)]
    found = negative_binomial_nll(leaves[0], x, leaves[1], zero_logits=leaves[2], impl=KERNELS)
    wide = [t.detach().double().requires_grad_() for t in (m, a, z)]
    exact = negative_binomial_nll(wide[0], x, wide[1], zero_logits=wide[2], impl="reference")
    assert found.dtype == (F64 if dtype == F64 else F32)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    pairs = zip(
        *(torch.autograd.grad(v.sum(), t) for v, t in ((found, leaves), (exact, wide))), strict=True
    )
    for gradient, expected in pairs:
        assert gradient.dtype == dtype
        bar = max(torch.finfo(dtype).eps, 2e-6)
        torch.testing.assert_close(gradient.double(), expected, rtol=bar, atol=bar)
    logits = m.detach().requires_grad_()
    found = multinomial_nll(logits, x, impl=KERNELS)
    exact = multinomial_nll(wide[0], x, impl="reference")
    # Roundings of x (log x - a), which are of one sign where all columns are the same.
    counts = x.detach().double()
    size = torch.xlogy(counts, counts) - counts * wide[0].detach()
    atol = 2 * rounding(F32) * size.abs().sum(-1).max().item()
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5 + atol)
    (gradient,), (expected,) = (
        torch.autograd.grad(v.sum(), t) for v, t in ((found, logits), (exact, wide[0]))
    )
    bar = max(torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(gradient.double(), expected, rtol=bar, atol=100 * bar)


@pytest.mark.parametrize("form", [(), (40,), (3, 1), (3, 40)], ids=str)
@pytest.mark.parametrize("samples", [None, 2])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_of_a_softmax(reduction, samples, form, device):
    """Against the composition in float64; and again, when forward's gradients are handed over."""
    shape = (3, 40) if samples is None else (samples, 3, 40)
    x = counts_of(3, 40, device=device)
    leaves = [normal(*s, dtype=F32, device=device) for s in (shape, form, (3, 1), shape)]

    def results(dtype, function):
        own = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        value = function(*own)
        value = value if value.dim() == 0 else (value * torch.arange(1, 4, device=device)).sum()
        first = torch.autograd.grad(2 * value, own, retain_graph=True)
        return value, first, torch.autograd.grad(2 * value, own)

    def fused(logits, a, library, z):
        return softmax_negative_binomial_nll(
            logits, x, a, library, zero_logits=z, reduction=reduction, impl=KERNELS
        )

    def composed(logits, a, library, z):
        log_mean = library + torch.log_softmax(logits, -1)
        value = negative_binomial_nll(log_mean, x, a, zero_logits=z, impl="reference")
        return value if reduction == "none" else getattr(value, reduction)()

    (value, *gradients), (exact, expected, _) = results(F32, fused), results(F64, composed)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-5)
    for found in gradients:
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=2e-5, atol=1e-4)


@IMPLS
def test_softmax_of_long_rows_and_a_library_for_each_cell(impl, device):
    x, logits = counts_of(3, 5000, device=device), normal(3, 5000, dtype=F32, device=device)
    library = x.sum(1).log()
    found = softmax_negative_binomial_nll(logits, x, 0.5, library, impl=impl)
    log_mean = library[:, None] + torch.log_softmax(logits.double(), 1)
    exact = negative_binomial_nll(log_mean, x, 0.5, impl="reference")
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"log_library.*\(4,\)"):
        softmax_negative_binomial_nll(logits, x, 0.5, library.new_zeros(4), impl=impl)


@IMPLS
class TestNoCount:
    """Nobody waits for the device to look: an example that cannot be is NaN, and no other."""

    @pytest.mark.parametrize("bad", [-1.0, -0.5, math.nan])
    def test_is_nan(self, bad, impl, device):
        m = normal(3, 4, dtype=F32, device=device).requires_grad_()
        x = torch.tensor([[0, 1, 2, 3], [1, bad, 0, 0], [0, 0, 0, 0]], device=device)
        for value in (
            negative_binomial_nll(m, x, 0.5, impl=impl),
            negative_binomial_nll(m, x, 0.5, zero_logits=m.detach(), impl=impl),
            multinomial_nll(m, x, impl=impl),
        ):
            assert value.isnan().tolist() == [False, True, False]
            (gradient,) = torch.autograd.grad(value[::2].sum(), m)
            assert not gradient[::2].isnan().any()

    def test_impossible_words(self, impl, device):
        """An outcome that did not happen may be impossible; 0 times -inf is 0 here."""
        logits = torch.tensor([[0.0, -math.inf, 0.0]] * 2, device=device)
        x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]], device=device)
        value = multinomial_nll(logits, x, impl=impl)
        assert value[0].item() == pytest.approx(math.log(2), rel=1e-6)
        assert value[1].item() == math.inf

    def test_no_counts_at_all(self, impl, device):
        logits = normal(2, 5, dtype=F32, device=device).requires_grad_()
        value = multinomial_nll(logits, torch.zeros(2, 5, device=device), impl=impl)
        assert value.tolist() == [0.0, 0.0]
        assert not torch.autograd.grad(value.sum(), logits)[0].any()


@pytest.mark.parametrize("columns", [3, 64, 700, 5000])
@DTYPES
def test_digits_of_multinomial(columns, dtype, device):
    logits = (3 * normal(4, columns)).to(device, dtype).requires_grad_()
    x = counts_of(4, columns, device=device).to(dtype)
    x[0, 2] = 40_000
    wide, counts = logits.detach().double().requires_grad_(), x.double()

    def eager(logits, x):
        constant = torch.lgamma(x + 1).sum(-1) - torch.lgamma(x.sum(-1) + 1)
        return constant - (x * torch.log_softmax(logits, -1)).sum(-1)

    exact, usual = eager(wide, counts), eager(logits, x)
    found = multinomial_nll(logits, x, impl=KERNELS)
    log_probs = wide.detach().log_softmax(-1)
    size = (torch.lgamma(counts + 1) - counts * log_probs).sum(-1).abs()
    bar = 2 * (usual - exact).abs() + ATOL * rounding(dtype) * (size + exact.abs())
    assert (((found - exact).abs() <= bar) | (dtype == F64)).all(), (found - exact, bar)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5 if dtype == F32 else 1e-12, atol=0)
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0], device=device)
    g, e, u = (
        torch.autograd.grad((v * weight).sum(), t)[0]
        for v, t in ((found, logits), (exact, wide), (usual, logits))
    )
    n = counts.sum(-1, keepdim=True)
    size = weight.abs()[:, None] * (n * log_probs.exp() + counts)
    roundings = ATOL if dtype == F32 else 64  # in float64 the oracle is no better than eager
    bar = 2 * (u - e).abs().amax() + roundings * rounding(dtype) * size
    assert ((g - e).abs() <= bar).all()


def test_transforms_by_the_reference(device):
    """vmap and forward mode take the reference by impl="auto"."""
    m, x, a = normal(3, 5), counts_of(3, 5).double(), normal(5)
    expected = negative_binomial_nll(m, x, a, impl="reference")
    found = torch.func.vmap(lambda m, x: negative_binomial_nll(m[None], x[None], a)[0])(m, x)
    torch.testing.assert_close(found, expected)
    forward = torch.func.jacfwd(lambda a: negative_binomial_nll(m, x, a))(a)
    backward = torch.func.jacrev(lambda a: negative_binomial_nll(m, x, a))(a)
    torch.testing.assert_close(forward, backward)
