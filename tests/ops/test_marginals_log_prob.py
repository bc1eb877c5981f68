"""The product of a mixture's marginals, and beside it the joint density, of equal weights."""

import math

import mpmath
import pytest
import torch
from torch.distributions import Normal

from fused_elbo import gaussian_log_prob
from fused_elbo.kernels import ops
from helpers.accuracy import ATOL, LOW, accumulation, lay, rounding
from helpers.machine import INTERPRET
from helpers.oracle import upstream
from helpers.samples import normal

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
NAMES = "value", "z", "mu", "logvar", "log_weights"


def joint(z, mu, logvar):
    return ops.mixture_log_prob(z, mu, logvar, None)


def marginals(z, mu, logvar, log_weights=None):
    return ops.marginals_log_prob(z, mu, logvar, log_weights)


FUNCTIONS = {"joint": joint, "marginals": marginals}
BOTH = pytest.mark.parametrize("name", FUNCTIONS)
# (rows, components, cols): numba's blocks are of 1024 and its groups of 8, Triton's tiles of 128
# and 64.
SIZES = [
    (1, 1, 1),
    (3, 1, 5),
    (1, 70, 3),
    (65, 64, 2),
    (7, 129, 3),
    (2, 2, 1),
    (70, 70, 3),
    (130, 130, 2),
]


def problem(rows, components, cols, device, *, std=1.0, offset=0.0, dtype=F32):
    """(z, mu, logvar): rows near components, as samples of q are."""
    mu = offset + normal(components, cols, seed=1)
    logvar = 2 * math.log(std) + 0.3 * normal(components, cols, seed=2)
    z = mu[torch.arange(rows) % components] + std * normal(rows, cols, seed=3)
    return [t.to(device, dtype) for t in (z, mu, logvar)]


def weighted_problem(*arguments, **options):
    """The same, with log weights that do not add up to 1."""
    leaves = problem(*arguments, **options)
    return [*leaves, (1 + normal(len(leaves[1]), seed=4)).to(leaves[0])]


def log_weights(rows, components, given):
    """As they are given, or equal."""
    if given:
        return given[0].double().expand(rows, -1)
    return torch.full((rows, components), -math.log(components), dtype=F64)


def eager(z, mu, logvar):
    """The code that people write."""
    residual = (z - mu) * torch.exp(-0.5 * logvar)
    return -0.5 * (residual**2 + logvar + math.log(2 * math.pi))


def torchs(z, mu, logvar):
    return Normal(mu, (0.5 * logvar).exp(), validate_args=False).log_prob(z)


def in_pairs(log_prob, name, z, mu, logvar, *given):
    """The definition, of a Gaussian's ``log_prob``, in the dtype of the arguments."""
    pairs = log_prob(z.unsqueeze(1), mu, logvar)
    weights = log_weights(len(z), len(mu), given).to(pairs)
    if name == "joint":
        return torch.logsumexp(pairs.sum(-1) + weights, 1)
    return torch.logsumexp(pairs + weights[..., None], 1).sum(-1)


def with_gradients(function, leaves, weight, views=None):
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    arguments = leaves if views is None else [v(t) for v, t in zip(views, leaves, strict=True)]
    value = function(*arguments)
    return [value.detach(), *torch.autograd.grad(value, leaves, weight.to(value.dtype))]


def magnitudes(name, z, mu, logvar, *given, weight):
    """Sizes of the value and of each gradient, which rounding errors are relative to."""
    z, mu, logvar = (t.double() for t in (z, mu, logvar))
    weights = log_weights(len(z), len(mu), given).to(z.device)[..., None]
    root = torch.exp(-0.5 * logvar)
    residual = (z.unsqueeze(1) - mu) * root
    parts = 0.5 * (residual**2 + logvar.abs() + math.log(2 * math.pi))
    logs = weights - 0.5 * (residual**2 + logvar + math.log(2 * math.pi))
    if name == "joint":
        logs, parts = (logs - weights).sum(-1, keepdim=True) + weights, parts.sum(-1, keepdim=True)
    share = torch.softmax(logs, 1)
    pairs = share * weight.double().abs()[:, None, None] * (1 + parts)
    pull = pairs * residual.abs() * root
    value = (share * (parts + weights.abs())).sum((1, 2))
    squares = (pairs * (1 + residual**2)).sum(0)
    each = value, pull.sum(1), pull.sum(0), squares, *(pairs.sum((0, 2)) for _ in given)
    return [float(t.max()) for t in each]


def check(name, leaves, views=None, device="cpu"):
    """Within twice eager's error and a few roundings of what was added up."""
    dtype = leaves[0].dtype
    views = views or [lambda t: t] * len(leaves)
    arguments = [v(t) for v, t in zip(views, leaves, strict=True)]
    weight = upstream((len(arguments[0]),)).to(device)
    single = [t.float() for t in leaves] if dtype in LOW else leaves

    def of(log_prob):
        return lambda *tensors: in_pairs(log_prob, name, *tensors)

    found = with_gradients(lambda *a: FUNCTIONS[name](*a), leaves, weight, views)
    exact = with_gradients(of(torchs), [t.double() for t in leaves], weight, views)
    usual = with_gradients(of(eager), single, weight, views)
    sizes = magnitudes(name, *arguments, weight=weight)
    names = NAMES[: len(found)]
    for what, f, e, u, most in zip(names, found, exact, usual, sizes, strict=True):
        assert f.dtype == (accumulation(dtype) if what == "value" else dtype)
        error = (f.double() - e).abs()
        allowed = 2 * (u.double() - e).abs().max() + ATOL * rounding(accumulation(dtype)) * most
        if f.dtype in LOW:
            allowed = allowed + rounding(f.dtype) * e.abs() + torch.finfo(f.dtype).tiny
        assert (error <= allowed).all(), (what, (error - allowed).max())


@BOTH
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_within_twice_eagers_error(name, size, dtype, device):
    check(name, problem(*size, device, dtype=dtype), device=device)


@BOTH
def test_bfloat16(name, device):
    check(name, problem(9, 9, 3, device, dtype=BF16), device=device)


@BOTH
@pytest.mark.parametrize("std", [1.0, 0.02])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_narrow_and_far_from_the_origin(name, std, offset, device):
    check(name, problem(70, 70, 4, device, std=std, offset=offset), device=device)


@BOTH
def test_several_blocks(name, device):
    """Whole blocks and others, in numba and in Triton; sums round as eager's do."""
    rows, components = (200, 300) if INTERPRET else (1100, 2100)
    check(name, problem(rows, rows, 1, device), device=device)
    check(name, problem(40, components, 1, device), device=device)


@BOTH
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded_rows"])
def test_layouts(name, layout, device):
    leaves, views = zip(*(lay(t, layout) for t in problem(6, 6, 7, device)), strict=True)
    check(name, list(leaves), list(views), device)


class TestWeights:
    """Log weights, in the marginals; test_mixture_log_prob.py has them in the joint density."""

    @pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
    @pytest.mark.parametrize("size", [(1, 1, 1), (5, 3, 2), (7, 129, 3), (70, 20, 2)], ids=str)
    def test_within_twice_eagers_error(self, size, dtype, device):
        check("marginals", weighted_problem(*size, device, dtype=dtype), device=device)

    @pytest.mark.numba
    def test_several_blocks(self, device):
        """Several blocks of components, which have weights, and of rows, which add to gradients."""
        check("marginals", weighted_problem(1100, 1100, 1, device), device=device)

    def test_layouts(self, device):
        leaves = weighted_problem(6, 6, 7, device)
        layouts = "transposed", "sliced", "expanded_rows", "strided_columns"
        pairs = [lay(t, layout) for t, layout in zip(leaves, layouts, strict=True)]
        leaves, views = zip(*pairs, strict=True)
        check("marginals", list(leaves), list(views), device)

    @pytest.mark.parametrize("cols", [1, 3])
    def test_of_a_factor_each_latent_has_one(self, cols, device):
        *tensors, weights = weighted_problem(9, 5, cols, device, dtype=F64)
        found = marginals(*tensors, weights + 2.5)
        torch.testing.assert_close(found, marginals(*tensors, weights) + 2.5 * cols)

    def test_equal_ones_are_none(self, device):
        tensors = problem(9, 5, 3, device, dtype=F64)
        alike = torch.full((5,), -math.log(5), dtype=F64, device=device)
        found = marginals(*tensors, alike)
        torch.testing.assert_close(found, marginals(*tensors))

    def test_of_one_latent_joint_and_marginal_are_one(self, device):
        tensors, weight = weighted_problem(9, 20, 1, device, dtype=F64), upstream((9,)).to(device)
        values = (
            with_gradients(lambda *a, op=op: op(*a), tensors, weight)
            for op in (ops.mixture_log_prob, ops.marginals_log_prob)
        )
        for a, b in zip(*values, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)

    def test_a_weight_in_the_sum_and_not_beside_it(self, device):
        """In fifty digits: of a component that is all there is, though it weighs 1e-30."""
        z, mu, logvar = problem(1, 3, 2, device, std=0.02)
        mu = mu + 100 * torch.arange(3, device=device)[:, None]
        z = mu[1:2] + 0.01
        weights = torch.tensor([0.0, -69.0, 3.0], device=device)
        with mpmath.workdps(50):
            latents = [
                mpmath.log(mpmath.npdf(x, m, mpmath.exp(mpmath.mpf(v) / 2)))
                for x, m, v in zip(z[0].tolist(), mu[1].tolist(), logvar[1].tolist(), strict=True)
            ]
            exact = mpmath.fsum(latents) - 2 * 69
        found = marginals(z, mu, logvar, weights).item()
        assert found == pytest.approx(float(exact), rel=2e-6)

    def test_weight_zero_is_no_component(self, device):
        """In value and in gradients, of which its own are 0; wherever it may be."""
        leaves = weighted_problem(9, 5, 3, device, dtype=F64)
        left, weight = torch.tensor([0, 1, 3, 4], device=device), upstream((9,)).to(device)
        leaves[3][2] = -math.inf
        rest = [leaves[0], *(t[left] for t in leaves[1:])]
        found, expected = (
            with_gradients(lambda *a: marginals(*a), tensors, weight) for tensors in (leaves, rest)
        )
        for i, (f, e) in enumerate(zip(found, expected, strict=True)):
            assert i < 2 or (f[2] == 0).all()
            torch.testing.assert_close(f[left] if i > 1 else f, e)

    def test_all_of_them_zero(self, device):
        """Nothing is possible: -inf, and gradients of 0, not NaN."""
        leaves = [*problem(3, 2, 2, device), torch.full((2,), -math.inf, device=device)]
        found = with_gradients(lambda *a: marginals(*a), leaves, torch.ones(3, device=device))
        assert found[0].isneginf().all()
        assert all((t == 0).all() for t in found[1:])

    def test_every_subset(self, device):
        tensors = weighted_problem(9, 20, 3, device)
        weight = upstream((9,)).to(device, F32)
        whole = with_gradients(lambda *a: marginals(*a), tensors, weight)
        for wanted in range(1, 16):
            needs = [bool(wanted >> i & 1) for i in range(4)]
            leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
            marginals(*leaves).backward(weight)
            for leaf, expected in zip(leaves, whole[1:], strict=True):
                assert leaf.grad is None or torch.equal(leaf.grad, expected)
                assert (leaf.grad is not None) == leaf.requires_grad

    @pytest.mark.numba
    def test_second_derivatives_on_cpus(self, device):
        leaves = [t.requires_grad_() for t in weighted_problem(2, 3, 2, device, dtype=F64)]
        assert torch.autograd.gradgradcheck(lambda *a: marginals(*a), leaves)


class TestAgainstOthers:
    def test_one_component_is_the_gaussian(self, device):
        z, mu, logvar = problem(40, 1, 6, device, dtype=F64)
        found = marginals(z, mu, logvar)
        torch.testing.assert_close(found, gaussian_log_prob(z, mu, logvar))

    def test_of_one_latent_joint_and_marginal_are_one(self, device):
        tensors, weight = problem(70, 70, 1, device, dtype=F64), upstream((70,)).to(device)
        values = (
            with_gradients(lambda *a, f=f: f(*a), tensors, weight) for f in FUNCTIONS.values()
        )
        for a, b in zip(*values, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


class TestExtremes:
    @BOTH
    @pytest.mark.parametrize("distance", [1e20, 1e30])
    def test_far_components_make_no_nan(self, name, distance, device):
        """Their squares overflow in float32, or distances in standard deviations do."""
        z, mu, logvar = problem(5, 5, 3, device)
        mu[1:], logvar[2] = distance, -60.0
        z[:] = mu[:1] + 0.1
        found = with_gradients(
            lambda *a: FUNCTIONS[name](*a), [z, mu, logvar], torch.ones(5, device=device)
        )
        exact = gaussian_log_prob(z, mu[0], logvar[0])
        exact = exact - math.log(5) * (1 if name == "joint" else 3)
        torch.testing.assert_close(found[0], exact)
        assert all(t.isfinite().all() for t in found)
        assert all((t[1:] == 0).all() for t in found[2:])

    @BOTH
    def test_impossible_of_all_components(self, name, device):
        """-inf there and there alone, and gradients of 0, not NaN."""
        z = torch.tensor([[1e30, 0.0], [0.0, 0.0]], device=device)
        zero = torch.zeros(2, 2, device=device)
        found = with_gradients(
            lambda *a: FUNCTIONS[name](*a), [z, zero, zero], torch.ones(2, device=device)
        )
        assert found[0].isneginf().tolist() == [True, False]
        assert all(t.isfinite().all() for t in found[1:])

    @BOTH
    def test_nan_stays_where_it_is(self, name, device):
        z, mu, logvar = problem(3, 3, 2, device)
        z[1, 0], z[2, 1] = math.nan, math.inf
        found = FUNCTIONS[name](z, mu, logvar)
        assert found.isnan().tolist() == [False, True, False]
        assert found.isneginf().tolist() == [False, False, True]

    @pytest.mark.parametrize("logvar", [-80.0, 80.0])
    def test_variances(self, logvar, device):
        z, mu, _ = problem(5, 5, 2, device, std=math.exp(0.5 * logvar))
        leaves = [z - mu[:1], mu - mu[:1], torch.full_like(mu, logvar)]
        check("marginals", leaves, device=device)


class TestGradients:
    @BOTH
    def test_every_subset(self, name, device):
        """Each subset's gradients are those of all, bit for bit, and those of another run."""
        tensors, weight = problem(70, 70, 3, device), upstream((70,)).to(device, F32)
        whole = with_gradients(lambda *a: FUNCTIONS[name](*a), tensors, weight)
        for wanted in range(1, 8):
            needs = [bool(wanted >> i & 1) for i in range(3)]
            leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needs, strict=True)]
            FUNCTIONS[name](*leaves).backward(weight)
            for leaf, expected in zip(leaves, whole[1:], strict=True):
                assert leaf.grad is None or torch.equal(leaf.grad, expected)
                assert (leaf.grad is not None) == leaf.requires_grad

    @BOTH
    @pytest.mark.numba
    def test_second_derivatives_on_cpus(self, name, device):
        leaves = [t.requires_grad_() for t in problem(2, 2, 2, device, dtype=F64)]
        assert torch.autograd.gradgradcheck(lambda *a: FUNCTIONS[name](*a), leaves)


@pytest.mark.numba
def test_as_many_threads_as_there_may_be(device):
    """The same results: a latent is one thread's."""
    tensors, weight = problem(300, 300, 5, device), upstream((300,))
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(with_gradients(lambda *a: FUNCTIONS["marginals"](*a), tensors, weight))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.triton
@pytest.mark.parametrize("programs", [1, 100])
def test_stretches(programs, device, monkeypatch):
    """Several programs for what is owned, and for the others one or more."""
    from fused_elbo.kernels.triton import pairs

    for constant, value in (("OWN", 8), ("OTHERS", 4), ("PROGRAMS", programs)):
        monkeypatch.setattr(pairs, constant, value)
    for name in FUNCTIONS:
        check(name, problem(9, 9, 2, device), device=device)
    check("marginals", weighted_problem(3, 17, 2, device), device=device)


@pytest.mark.numba
def test_nothing_of_the_size_of_all_pairs(device):
    """[rows, components] alone would be 16 times what the largest allocation is."""
    rows = components = 1024
    leaves = [t.requires_grad_() for t in problem(rows, components, 2, device)]
    with torch.profiler.profile(profile_memory=True) as profile:
        marginals(*leaves).sum().backward()
    most = max((abs(e.self_cpu_memory_usage) for e in profile.events()), default=0)
    assert 0 < most < rows * components * 4 / 16


@BOTH
def test_through_torch_compile_it_is_one_op(name, device):
    tensors = [t.requires_grad_() for t in problem(5, 5, 3, device)]
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager", dynamic=True)
    found, expected = compiled(*tensors), FUNCTIONS[name](*tensors)
    assert torch.equal(found, expected)
    pairs = [torch.autograd.grad(t.sum(), tensors) for t in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
