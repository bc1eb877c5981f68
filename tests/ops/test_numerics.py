"""Every operation's kernels against float64, by the bar of bar.py: values and gradients."""

import math

import pytest
import torch
from scipy import integrate, special, stats

import fused_elbo
from helpers.accuracy import ATOL, LAYOUTS, LOW, check, rounding, run_public
from helpers.machine import KERNELS
from helpers.oracle import OP, OPS, kl_parts, random_values

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NAMES = {F16: "f16", BF16: "bf16", F32: "f32", F64: "f64"}

# A covering design instead of the product of 13 ops x 4 dtypes x 18 shapes x 36 layouts. What
# can break separately is varied separately, at sizes where it would break, for every op:
#  - every D in float32: below, at and above four (the noise's group), a vector of 16 bytes,
#    a power of two, and the 1024 columns of a tile (1000: one tile, 4097: five, the last with
#    one column), with an odd number of rows;
#  - every count of rows at D = 7 (blocks of 128 rows: none, one, a part, two and a part) and
#    D = 64 (vector loads), and inputs of more dimensions;
#  - every other dtype at a D that is odd, one that loads as vectors, one of several tiles;
#  - every layout of inputs at D = 31 (scalar loads) and 64 (vector loads), those of upstream
#    gradients with it, and half precision, whose vectors are longer, in each.
SHAPES = [
    *[(3, d) for d in (1, 2, 3, 4, 7, 31, 64, 100, 1000, 4097)],
    *[(b, 7) for b in (0, 1, 5, 129)],
    *[(b, 64) for b in (1, 33)],
    (0, 4097),
    (2, 3, 8, 8),
    (3, 5, 6),
]
DTYPES = [(dtype, shape) for dtype in (F16, BF16, F64) for shape in ((5, 3), (3, 64), (2, 1025))]
PAIRED = {  # a layout of the inputs -> a layout of the upstream gradients, all covered
    "contiguous": "expanded_rows",
    "transposed": "transposed",
    "sliced": "expanded_columns",
    "strided_columns": "sliced",
    "expanded_rows": "contiguous",
    "expanded_columns": "strided_columns",
}
assert set(PAIRED) == set(PAIRED.values()) == set(LAYOUTS)

CASES = [
    *[(F32, shape, "contiguous", "contiguous") for shape in SHAPES],
    *[(dtype, shape, "contiguous", "contiguous") for dtype, shape in DTYPES],
    *[(F32, (5, d), inner, outer) for d in (31, 64) for inner, outer in PAIRED.items()],
    *[(BF16, (6, 32), inner, outer) for inner, outer in PAIRED.items()],
    (F32, (2, 3, 4, 4), "transposed", "expanded_columns"),
    (F32, (3, 2, 8), "sliced", "sliced"),
]


def case_id(case):
    dtype, shape, inner, outer = case
    size = "x".join(map(str, shape))
    return f"{NAMES[dtype]}-{size}" + (f"-{inner}-{outer}" if inner != outer else f"-{inner}")


each_op = pytest.mark.parametrize("op", OPS, ids=repr)


@each_op
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_within_twice_eagers_error(op, case, device):
    dtype, shape, inner, outer = case
    check(op, shape, dtype, inner, outer, device=device)


def constant(value):
    return lambda t: torch.full_like(t, value)


# One extreme at a time, in every element: the bar is set by the largest one, so that
# moderate elements beside an extreme one would go unchecked.
EXTREMES = [
    *[("logvar", v) for v in (1e-4, -1e-4, 30.0, -30.0, 80.0, -80.0)],
    *[("prior_logvar", v) for v in (1e-4, 30.0, -30.0, 80.0, -80.0)],
    *[(arg, v) for arg in ("scalar_logvar", "row_logvar") for v in (30.0, -30.0, 80.0, -80.0)],
    *[(arg, v) for arg in ("mu", "recon", "prior_mu", "x") for v in (1e4, -1e4)],
    *[("logits", v) for v in (100.0, -100.0, 1e-4, 17.0, -17.0)],
]
EXTREME_CASES = [
    pytest.param(op, dtype, arg, value, id=f"{op.name}-{NAMES[dtype]}-{arg}={value:g}")
    for op in OPS
    for arg, value in EXTREMES
    if arg in op.arguments
    for dtype in ((F32, F64) if abs(value) < 1000 else (F32,))
]


@pytest.mark.parametrize(("op", "dtype", "argument", "value"), EXTREME_CASES)
def test_extremes(op, dtype, argument, value, device):
    check(op, (3, 5), dtype, device=device, values={argument: constant(value)})


HALF_EXTREMES = [
    pytest.param(OP[name], dtype, arg, value, id=f"{name}-{NAMES[dtype]}-{arg}={value:g}")
    for dtype in LOW
    for name, arg, value in (
        ("gaussian_kl", "logvar", 12.0),  # exp(12) is inf in float16, the KL is not
        ("gaussian_kl", "logvar", 1e-4),
        ("rsample_kl", "logvar", 12.0),
        ("gaussian_rsample", "logvar", 30.0),  # here z itself leaves float16's range
        ("gaussian_log_prob", "logvar", -12.0),
        ("gaussian_nll_scalar", "scalar_logvar", -10.0),
        ("bernoulli_nll", "logits", 100.0),
    )
]


@pytest.mark.parametrize(("op", "dtype", "argument", "value"), HALF_EXTREMES)
def test_half_precision_overflows_only_where_the_value_does(op, dtype, argument, value, device):
    check(op, (3, 5), dtype, device=device, values={argument: constant(value)})


def at_one_place(value):
    """One element of the third row; of a scalar or a vector, its only or last one."""

    def put(t):
        t = t.clone()
        t[(min(2, t.shape[0] - 1), *(0,) * (t.dim() - 1)) if t.dim() else ()] = value
        return t

    return put


NONFINITE = [
    pytest.param(op, arg, value, id=f"{op.name}-{arg}={value}")
    for op in OPS
    for arg in op.arguments
    for value in (math.inf, -math.inf, math.nan)
    # With a standard deviation of 0 the score of q, or z in units of the prior, is a sum of
    # infinities whose order decides; values are finite or infinite there, gradients either.
    if not (op.name == "rsample_log_ratio_path" and "logvar" in arg and value == -math.inf)
]


@pytest.mark.parametrize(("op", "argument", "value"), NONFINITE)
def test_nonfinite_where_and_only_where_the_oracle_has_it(op, argument, value, device):
    # The logits' gradient at +-inf is finite mathematically, NaN by autograd's chain rule.
    check(op, (5, 3), F32, device=device, values={argument: at_one_place(value)})


@pytest.mark.parametrize("cols", [3, 4])
def test_padding_lanes_do_not_leak_at_an_overflowing_precision(cols, device):
    """exp(-logvar / 2) is inf in float32 at -200; padding columns must not make 0 * inf of it."""
    recon = torch.zeros(2, cols, device=device)
    x = torch.ones(2, cols, device=device)
    for logvar in (-200.0, torch.tensor(-200.0, device=device, requires_grad=True)):
        nll = fused_elbo.gaussian_nll(recon, x, logvar, impl=KERNELS)
        assert torch.equal(nll.detach(), torch.full_like(nll, math.inf))
    (gradient,) = torch.autograd.grad(nll.sum(), logvar)
    assert gradient.item() == -math.inf


@pytest.mark.parametrize("dtype", [F32, F64], ids=NAMES.get)
@pytest.mark.parametrize("logvar", [1e-4, -1e-4, 1e-6, 0.0, 0.05, -0.3, 0.49, -0.49])
def test_kl_keeps_its_digits_near_the_prior(logvar, dtype, device):
    """No share of eager's error here: at 1e-4 the usual formula gives -0.0 for 2.5e-9."""
    shift = torch.tensor(0.75, dtype=dtype).item()
    lv = torch.full((2, 3), logvar, dtype=dtype, device=device)
    mu = torch.zeros_like(lv)
    truth = sum(kl_parts(mu.double(), lv.double())).sum(-1)
    variants = {
        "standard prior": fused_elbo.gaussian_kl(mu, lv, impl=KERNELS),
        "in one pass": fused_elbo.rsample_kl(mu, lv, impl=KERNELS)[1],
    }
    for name, kl in variants.items():
        error = (kl.double() - truth).abs()
        assert (error <= ATOL * rounding(dtype) * truth).all(), name
    # Given a prior, the difference of the log variances is rounded before it is used.
    prior = torch.full_like(lv, shift)
    lv = lv + shift
    truth = sum(kl_parts(mu.double(), lv.double(), mu.double(), prior.double())).sum(-1)
    kl = fused_elbo.gaussian_kl(mu, lv, mu, prior, impl=KERNELS)
    assert ((kl.double() - truth).abs() <= ATOL * rounding(dtype) * truth).all()


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=NAMES.get)
def test_kl_is_never_negative(dtype, device):
    """A sweep through and around q = p, where the usual formula's sign is noise."""
    logvar = torch.linspace(-0.6, 0.6, 1_501, dtype=F64)[:, None]
    logvar = torch.cat((logvar, logvar * 1e-3, logvar * 1e-6)).to(device, dtype)
    mu = torch.zeros_like(logvar)
    prior = (torch.zeros_like(mu), logvar.roll(1, 0))
    for kl in (
        fused_elbo.gaussian_kl(mu, logvar, impl=KERNELS),
        fused_elbo.gaussian_kl(mu, logvar, *prior, impl=KERNELS),
        fused_elbo.rsample_kl(mu, logvar, impl=KERNELS)[1],
        fused_elbo.rsample_kl(mu, logvar, *prior, impl=KERNELS)[1],
    ):
        assert (kl >= 0).all()
    exactly = fused_elbo.gaussian_kl(mu, logvar, mu, logvar, impl=KERNELS)
    assert torch.equal(exactly, torch.zeros_like(exactly))


class TestAgainstScipy:
    """A second oracle that shares nothing with the first, at float64's precision."""

    @staticmethod
    def values(*arguments):
        generator = torch.Generator().manual_seed(7)
        return [random_values(a, (4, 5), generator) for a in arguments]

    def close(self, actual, expected):
        torch.testing.assert_close(actual.cpu(), torch.as_tensor(expected), rtol=1e-13, atol=1e-13)

    def test_log_prob(self, device):
        x, mu, logvar = self.values("x", "mu", "logvar")
        expected = stats.norm.logpdf(x, mu, (0.5 * logvar).exp()).sum(-1)
        args = [t.to(device) for t in (x, mu, logvar)]
        self.close(fused_elbo.gaussian_log_prob(*args, impl=KERNELS), expected)
        self.close(-fused_elbo.gaussian_nll(args[1], args[0], args[2], impl=KERNELS), expected)

    def test_bernoulli(self, device):
        (logits,) = self.values("logits")
        x = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(8)) < 0.5).double()
        expected = -stats.bernoulli.logpmf(x.long().numpy(), special.expit(logits.numpy())).sum(-1)
        self.close(
            fused_elbo.bernoulli_nll(logits.to(device), x.to(device), impl=KERNELS), expected
        )

    @pytest.mark.parametrize("prior", [False, True], ids=["standard", "given"])
    def test_kl_by_quadrature(self, prior, device):
        mu, logvar, m, s = self.values("mu", "logvar", "prior_mu", "prior_logvar")
        if not prior:
            m, s = torch.zeros_like(m), torch.zeros_like(s)

        def one(mu, logvar, m, s):
            q = stats.norm(mu, math.exp(0.5 * logvar))
            p = stats.norm(m, math.exp(0.5 * s))
            width = 12 * q.std()
            return integrate.quad(
                lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)),
                mu - width,
                mu + width,
                epsabs=1e-13,
                epsrel=1e-12,
                limit=200,
            )[0]

        first = [t[:1] for t in (mu, logvar, m, s)]
        expected = sum(one(*(t[0, d].item() for t in first)) for d in range(5))
        args = [t.to(device) for t in (first if prior else first[:2])]
        actual = fused_elbo.gaussian_kl(*args, impl=KERNELS).item()
        assert actual == pytest.approx(expected, abs=1e-11)
        assert fused_elbo.rsample_kl(*args, impl=KERNELS)[1].item() == pytest.approx(
            actual, abs=1e-13
        )

    def test_entropy_is_what_kl_to_a_flat_prior_leaves(self, device):
        """KL(q || p) = E_q[-log p] - H[q], and H by scipy."""
        mu, logvar, m, s = self.values("mu", "logvar", "prior_mu", "prior_logvar")
        entropy = stats.norm(mu, (0.5 * logvar).exp()).entropy().sum(-1)
        cross = -stats.norm.logpdf(mu, m, (0.5 * s).exp()) + 0.5 * (logvar - s).exp().numpy()
        args = [t.to(device) for t in (mu, logvar, m, s)]
        self.close(fused_elbo.gaussian_kl(*args, impl=KERNELS), cross.sum(-1) - entropy)


# The twins differ in the order of sums and in elementary functions: a few roundings each.
COMPARED = [op for op in OPS if "sample" not in op.name]


@pytest.mark.parametrize("op", COMPARED, ids=repr)
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=NAMES.get)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 4)], ids=str)
def test_twins_agree(op, dtype, shape, device):
    generator = torch.Generator().manual_seed(3)
    leaves = [random_values(a, shape, generator).to(device, dtype) for a in op.arguments]
    views = [lambda t: t] * len(leaves)
    size = shape[:-1] if op.reduced[0] == "last" else shape[:1]
    upstreams = [torch.linspace(-1, 1, math.prod(size), device=device).view(size)]
    results = [
        run_public(op, leaves, views, upstreams, "contiguous", 0, impl)
        for impl in (KERNELS, "reference")
    ]
    for kernel, twin in zip(*(r.outputs + r.gradients for r in results), strict=True):
        assert kernel.dtype == twin.dtype
        assert kernel.shape == twin.shape
        atol = 8 * rounding(kernel.dtype) * max(1.0, twin.abs().max().item())
        torch.testing.assert_close(kernel, twin, rtol=0, atol=atol)


class TestBroadcasting:
    """Arguments of fewer dimensions, and gradients of their own shapes."""

    @pytest.mark.parametrize("name", ["gaussian_kl_prior", "rsample_kl_prior"])
    @pytest.mark.parametrize("half", ["both", "prior_mu", "prior_logvar"])
    @pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 5)], ids=str)
    def test_prior_given_whole_or_in_half(self, name, half, shape, device):
        function = {"gaussian_kl_prior": fused_elbo.gaussian_kl}.get(name, fused_elbo.rsample_kl)
        generator = torch.Generator().manual_seed(5)
        mu = random_values("mu", (4, 5), generator).to(device, F32)
        logvar = random_values("logvar", (4, 5), generator).to(device, F32)
        prior = {
            n: random_values(n, shape, generator).to(device, F32).requires_grad_()
            for n in ("prior_mu", "prior_logvar")
            if half in ("both", n)
        }
        out = function(mu, logvar, **prior, impl=KERNELS)
        kl = out[1] if isinstance(out, tuple) else out
        weight = torch.tensor([1.0, -0.5, 2.0, 0.25], device=device)
        actual = torch.autograd.grad(kl, prior.values(), weight)

        wide = {n: p.detach().double().requires_grad_() for n, p in prior.items()}
        full = {n: p.expand(4, 5) for n, p in wide.items()}
        exact = sum(kl_parts(mu.double(), logvar.double(), **full)).sum(-1)
        expected = torch.autograd.grad(exact, wide.values(), weight.double())
        tight = {"rtol": 0, "atol": 16 * rounding(F32) * 8}  # magnitudes here are below 8
        torch.testing.assert_close(kl.detach().double(), exact.detach(), **tight)
        for gradient, p, e in zip(actual, prior.values(), expected, strict=True):
            assert gradient.shape == p.shape
            torch.testing.assert_close(gradient.double(), e, **tight)

    def test_log_prob_broadcasts_every_argument(self, device):
        x = torch.randn(6, 1, 5, device=device, requires_grad=True)
        mu = torch.randn(3, 5, device=device, requires_grad=True)
        logvar = torch.randn(1, device=device, requires_grad=True)
        value = fused_elbo.gaussian_log_prob(x, mu, logvar, impl=KERNELS)
        twin = fused_elbo.gaussian_log_prob(x, mu, logvar, impl="reference")
        assert value.shape == (6, 3)
        torch.testing.assert_close(value, twin)
        weight = torch.randn(6, 3, device=device)
        gradients = torch.autograd.grad(value, (x, mu, logvar), weight)
        for g, t in zip(gradients, torch.autograd.grad(twin, (x, mu, logvar), weight), strict=True):
            assert g.shape == t.shape
            torch.testing.assert_close(g, t, rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("dims", [(5,), (2, 3, 5)], ids=str)
    def test_any_number_of_leading_dimensions(self, dims, device):
        mu, logvar = torch.randn(dims, device=device), torch.randn(dims, device=device)
        assert fused_elbo.gaussian_kl(mu, logvar, impl=KERNELS).shape == dims[:-1]
        z, kl = fused_elbo.rsample_kl(mu, logvar, impl=KERNELS)
        assert z.shape == dims
        assert kl.shape == dims[:-1]
        assert fused_elbo.gaussian_rsample(mu, logvar, 2, impl=KERNELS).shape == (2, *dims)
