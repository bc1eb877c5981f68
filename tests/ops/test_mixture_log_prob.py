"""The density of a mixture: accuracy, gradients, extremes, layouts."""

import math

import mpmath
import pytest
import torch
from scipy import special, stats
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fused_elbo import gaussian_log_prob, mixture_log_prob
from fused_elbo.estimators.reference import reference
from helpers.accuracy import ATOL, LOW, accumulation, assert_same_nonfinite, lay, rounding
from helpers.launches import watch
from helpers.machine import INTERPRET, KERNELS
from helpers.oracle import upstream
from helpers.samples import IMPLS, normal

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
NAMES = "z", "mu", "logvar", "log_weights"
# Blocks of 64 or 128 rows and of as many components on either backend, groups of 4 and of 8: at,
# below and above, and D that are and are not whole registers.
SIZES = [
    (1, 1, 1),
    (3, 1, 5),
    (5, 3, 2),
    (1, 70, 3),
    (65, 64, 8),
    (64, 65, 9),
    (7, 129, 31),
    (130, 5, 4),
]


def problem(rows, components, cols, device, *, std=1.0, offset=0.0, dtype=F64):
    """(z, mu, logvar, log_weights): rows near components, as samples of q are."""
    mu = offset + normal(components, cols, seed=1)
    logvar = 2 * math.log(std) + 0.3 * normal(components, cols, seed=2)
    nearest = torch.arange(rows) % components
    z = mu[nearest] + std * normal(rows, cols, seed=3)
    # Exact in the dtype: all sides start from the same numbers.
    return [t.to(device, dtype) for t in (z, mu, logvar, normal(components, seed=4))]


def eager(z, mu, logvar, log_weights):
    """The code that people write."""
    residual = (z.unsqueeze(1) - mu) * torch.exp(-0.5 * logvar)
    logs = -0.5 * (residual**2 + logvar + math.log(2 * math.pi)).sum(-1)
    return torch.logsumexp(logs + torch.log_softmax(log_weights, 0), 1)


def torchs(z, mu, logvar, log_weights):
    components = Independent(Normal(mu, (0.5 * logvar).exp(), validate_args=False), 1)
    weights = Categorical(logits=log_weights)
    return MixtureSameFamily(weights, components, validate_args=False).log_prob(z)


def with_gradients(function, leaves, weight, views=None):
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    arguments = leaves if views is None else [v(t) for v, t in zip(views, leaves, strict=True)]
    value = function(*arguments)
    gradients = torch.autograd.grad(value, leaves, weight.to(value.dtype))
    return [value.detach(), *gradients]


def magnitudes(z, mu, logvar, log_weights, weight):
    """Sizes of the value and of each gradient, which rounding errors are relative to."""
    z, mu, logvar, log_weights = (t.double() for t in (z, mu, logvar, log_weights))
    root = torch.exp(-0.5 * logvar)
    residual = (z.unsqueeze(1) - mu) * root
    parts = 0.5 * (residual**2 + logvar.abs() + math.log(2 * math.pi)).sum(-1)
    log_weights = torch.log_softmax(log_weights, 0)
    logs = -0.5 * (residual**2 + logvar + math.log(2 * math.pi)).sum(-1) + log_weights
    share = torch.softmax(logs, 1) * weight.double().abs()[:, None]
    # A responsibility is as wrong as the log density in its exponent.
    pairs = (share * (1 + parts)).unsqueeze(-1)
    value = ((torch.softmax(logs, 1) * (parts + log_weights.abs())).sum(1)).amax() if len(z) else 0
    pull = pairs * residual.abs() * root
    each = pull.sum(1), pull.sum(0), (pairs * (1 + residual**2)).sum(0), pairs.sum((0, 2))
    return [float(value), *(float(t.max()) if t.numel() else 0.0 for t in each)]


def check(leaves, views=None, weight=None, device="cpu"):
    """Within twice eager's error and a few roundings of what was added up."""
    dtype = leaves[0].dtype
    views = views or [lambda t: t] * 4
    arguments = [v(t) for v, t in zip(views, leaves, strict=True)]
    weight = upstream((len(arguments[0]),)).to(device) if weight is None else weight

    def kernels(*tensors):
        return mixture_log_prob(*tensors, impl=KERNELS)

    wide = [t.double() for t in leaves]
    found = with_gradients(kernels, leaves, weight, views)
    exact = with_gradients(torchs, wide, weight, views)
    usual = with_gradients(eager, leaves, weight, views)
    if dtype in LOW:  # summed in float32
        usual = with_gradients(eager, [t.float() for t in leaves], weight, views)
    assert found[0].dtype == accumulation(dtype)
    sizes = magnitudes(*arguments, weight)
    for name, f, e, u, size in zip(("value", *NAMES), found, exact, usual, sizes, strict=True):
        assert f.shape == e.shape
        good = e.isfinite()
        error = torch.where(good, f.double() - e, 0.0).abs()
        allowed = 2 * torch.where(good, u.double() - e, 0.0).abs().max() if e.numel() else 0
        allowed = allowed + ATOL * rounding(accumulation(dtype)) * size
        if f.dtype in LOW:
            allowed = allowed + rounding(f.dtype) * e.abs() + torch.finfo(f.dtype).tiny
        assert (error <= allowed).all(), (name, (error - allowed).max())
        assert f.dtype == (accumulation(dtype) if name == "value" else dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_within_twice_eagers_error(size, dtype, device):
    check(problem(*size, device, dtype=dtype), device=device)


@IMPLS
def test_mixed_dtypes(impl, device):
    """Sums are of the widest; each gradient is of what it belongs to."""
    leaves = problem(5, 3, 2, device)
    leaves = [t.to(dtype) for t, dtype in zip(leaves, (F16, F32, F64, BF16), strict=True)]
    weight = upstream((5,)).to(device)
    found = with_gradients(lambda *a: mixture_log_prob(*a, impl=impl), leaves, weight)
    exact = with_gradients(torchs, [t.double() for t in leaves], weight)
    assert [t.dtype for t in found] == [F64, F16, F32, F64, BF16]
    torch.testing.assert_close(found[0], exact[0], rtol=1e-5, atol=1e-5)
    for f, e in zip(found[1:], exact[1:], strict=True):
        torch.testing.assert_close(f, e.to(f.dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("std", [1.0, 0.1, 0.02])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_narrow_and_far_from_the_origin(std, offset, device):
    """A matmul form would be off by 7e-2 nats at std 0.02, and by more with an offset."""
    check(problem(70, 90, 64, device, std=std, offset=offset, dtype=F32), device=device)


def test_many_rows_and_many_components(device):
    """Sums of a thousand terms round as eager's do."""
    sizes = (300, 40, 3), (40, 300, 3)
    for size in sizes if INTERPRET else [(5000, 30, 3), (30, 5000, 3)]:
        check(problem(*size, device, dtype=F32), device=device)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "strided_columns", "expanded_rows"])
@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
def test_layouts(layout, dtype, device):
    pairs = [lay(t, layout) for t in problem(6, 5, 7, device, dtype=dtype)[:3]]
    weights = lay(problem(6, 5, 7, device, dtype=dtype)[3], "strided_columns")
    leaves, views = zip(*pairs, weights, strict=True)
    leaf, view = lay(upstream((6,)).to(device), "expanded_columns")
    check(list(leaves), list(views), view(leaf), device)


class TestAgainstOthers:
    def test_scipy(self, device):
        z, mu, logvar, log_weights = problem(9, 6, 4, "cpu")
        logs = stats.norm.logpdf(z[:, None], mu, (0.5 * logvar).exp()).sum(-1)
        expected = special.logsumexp(logs + special.log_softmax(log_weights.numpy()), axis=1)
        found = mixture_log_prob(
            *(t.to(device) for t in (z, mu, logvar, log_weights)), impl=KERNELS
        )
        torch.testing.assert_close(found.cpu(), torch.as_tensor(expected), rtol=1e-13, atol=1e-13)

    def test_mpmath(self, device):
        """A second oracle, of fifty digits, where all components are far from z."""
        z, mu, logvar, log_weights = problem(1, 3, 2, "cpu", std=0.02, offset=5.0)
        with mpmath.workdps(50):
            exact = mpmath.log(
                mpmath.fsum(
                    mpmath.exp(w)
                    * mpmath.fprod(
                        mpmath.npdf(x - 3, m, mpmath.exp(mpmath.mpf(v) / 2))
                        for x, m, v in zip(z[0].tolist(), ms, vs, strict=True)
                    )
                    for ms, vs, w in zip(
                        mu.tolist(), logvar.tolist(), log_weights.tolist(), strict=True
                    )
                )
                / mpmath.fsum(mpmath.exp(w) for w in log_weights.tolist())
            )
        tensors = (t.to(device) for t in (z - 3, mu, logvar, log_weights))
        found = mixture_log_prob(*tensors, impl=KERNELS).item()
        assert found == pytest.approx(float(exact), rel=1e-12)

    @IMPLS
    def test_no_weights_are_equal_weights(self, impl, device):
        z, mu, logvar, _ = problem(5, 3, 2, device)
        alike = torch.full((3,), 7.0, dtype=F64, device=device)
        torch.testing.assert_close(
            mixture_log_prob(z, mu, logvar, impl=impl),
            mixture_log_prob(z, mu, logvar, alike, impl=impl),
        )

    @IMPLS
    def test_is_a_density(self, impl, device):
        """Whatever is added to the log weights."""
        _, mu, logvar, log_weights = problem(1, 4, 1, device)
        z = torch.linspace(-15, 15, 20_001, dtype=F64, device=device)[:, None]
        if impl == "triton" and INTERPRET:
            z = z[::40]
        density = mixture_log_prob(z, mu, logvar, log_weights + 3, impl=impl).exp()
        assert torch.trapezoid(density, z[:, 0]).item() == pytest.approx(1, abs=1e-9)

    @IMPLS
    @pytest.mark.parametrize("dtype", [F32, F64], ids=str)
    def test_one_component_is_the_gaussian(self, impl, dtype, device):
        z, mu, logvar, log_weights = problem(40, 1, 6, device, dtype=dtype)
        found = mixture_log_prob(z, mu, logvar, log_weights, impl=impl)
        torch.testing.assert_close(found, gaussian_log_prob(z, mu, logvar, impl=impl))

    @IMPLS
    def test_identical_components_are_one(self, impl, device):
        z, mu, logvar, log_weights = problem(9, 5, 3, device)
        same = mu[:1].expand(5, 3), logvar[:1].expand(5, 3)
        found = mixture_log_prob(z, *same, log_weights, impl=impl)
        torch.testing.assert_close(found, gaussian_log_prob(z, mu[0], logvar[0], impl=impl))

    @IMPLS
    def test_weight_zero_is_no_component(self, impl, device):
        """In value and in gradients, of which its own are 0; wherever it may be."""
        z, mu, logvar, log_weights = problem(9, 5, 3, device)
        log_weights[2] = -math.inf
        left = torch.tensor([0, 1, 3, 4], device=device)
        weight = upstream((9,)).to(device)
        rest = [z, *(t[left] for t in (mu, logvar, log_weights))]
        expected = with_gradients(lambda *a: mixture_log_prob(*a, impl=impl), rest, weight)
        found = with_gradients(
            lambda *a: mixture_log_prob(*a, impl=impl), [z, mu, logvar, log_weights], weight
        )
        for i, (f, e) in enumerate(zip(found, expected, strict=True)):
            if i > 1:
                assert (f[2] == 0).all()
            torch.testing.assert_close(f[left] if i > 1 else f, e)


class TestExtremes:
    @IMPLS
    @pytest.mark.parametrize("dtype", [F32, F64], ids=str)
    def test_far_components_make_no_nan(self, impl, dtype, device):
        """Their squares overflow in float32; that of the near one does not."""
        z, mu, logvar, log_weights = problem(5, 4, 3, device, dtype=dtype)
        mu, logvar = mu.clone(), logvar.clone()
        z = mu[:1] + 0.1
        mu[1:], logvar[2] = 1e20, -60.0
        weight = torch.ones(1, device=device)
        found = with_gradients(
            lambda *a: mixture_log_prob(*a, impl=impl), [z, mu, logvar, log_weights], weight
        )
        expected = gaussian_log_prob(z, mu[0], logvar[0]) + torch.log_softmax(log_weights, 0)[0]
        torch.testing.assert_close(found[0], expected)
        assert all(t.isfinite().all() for t in found)
        assert all((t[1:] == 0).all() for t in found[2:4])

    @IMPLS
    def test_impossible_of_all_components(self, impl, device):
        """-inf there and there alone, and gradients of 0, not NaN."""
        z = torch.tensor([[1e30], [0.0]], device=device)
        mu, logvar = torch.zeros(3, 1, device=device), torch.zeros(3, 1, device=device)
        weights = torch.zeros(3, device=device)
        found = with_gradients(
            lambda *a: mixture_log_prob(*a, impl=impl),
            [z, mu, logvar, weights],
            torch.ones(2, device=device),
        )
        assert found[0].tolist() == [-math.inf, pytest.approx(-0.5 * math.log(2 * math.pi))]
        assert all(t.isfinite().all() for t in found[1:])

    @pytest.mark.parametrize("logvar", [-80.0, -30.0, 30.0, 80.0])
    def test_variances(self, logvar, device):
        z, mu, _, log_weights = problem(5, 3, 2, device, std=math.exp(0.5 * logvar), dtype=F32)
        check([z - mu[:1], mu - mu[:1], torch.full_like(mu, logvar), log_weights], device=device)

    @IMPLS
    def test_nan_stays_where_it_is(self, impl, device):
        z, mu, logvar, log_weights = problem(3, 2, 2, device)
        z[1, 0] = math.nan
        found = mixture_log_prob(z, mu, logvar, log_weights, impl=impl)
        assert found.isnan().tolist() == [False, True, False]

    def test_infinite_z_is_impossible(self, device):
        z = torch.tensor([[math.inf, 0.0], [0.0, 0.0]], device=device)
        found = mixture_log_prob(
            z, torch.zeros(2, 2, device=device), torch.zeros(2, 2, device=device)
        )
        expected = torch.tensor([-math.inf, 0.0], dtype=F64, device=device)
        assert_same_nonfinite(found, expected, "value")


class TestGradients:
    @IMPLS
    def test_gradcheck(self, impl, device):
        leaves = [t.requires_grad_() for t in problem(3, 4, 2, device)]
        assert torch.autograd.gradcheck(lambda *a: mixture_log_prob(*a, impl=impl), leaves)

    def test_every_subset(self, device):
        """Each subset's gradients are those of all, bit for bit."""
        tensors, weight = problem(70, 66, 5, device, dtype=F32), upstream((70,)).to(device, F32)
        whole = with_gradients(lambda *a: mixture_log_prob(*a, impl=KERNELS), tensors, weight)
        for wanted in range(1, 16):
            leaves = [
                t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)
            ]
            mixture_log_prob(*leaves, impl=KERNELS).backward(weight)
            for leaf, expected in zip(leaves, whole[1:], strict=True):
                assert (
                    leaf.grad is None
                    if not leaf.requires_grad
                    else torch.equal(leaf.grad, expected)
                )

    def test_second_derivatives_of_the_reference(self):
        leaves = [t.requires_grad_() for t in problem(2, 3, 2, "cpu")]
        assert torch.autograd.gradgradcheck(
            lambda *a: mixture_log_prob(*a, impl="reference"), leaves
        )

    @pytest.mark.numba
    def test_second_derivatives_on_cpus(self, device):
        leaves = [t.requires_grad_() for t in problem(2, 3, 2, device)]
        assert torch.autograd.gradgradcheck(lambda *a: mixture_log_prob(*a, impl=KERNELS), leaves)

    @pytest.mark.triton
    def test_second_derivatives_are_refused(self, device):
        leaves = [t.requires_grad_() for t in problem(2, 3, 2, device)]
        value = mixture_log_prob(*leaves, impl=KERNELS).sum()
        (gradient,) = torch.autograd.grad(value, leaves[0], create_graph=True)
        with pytest.raises(RuntimeError, match="impl='reference'"):
            gradient.square().sum().backward()

    def test_a_sample_dimension_and_broadcast_components(self, device):
        """z of K samples, one variance for all components."""
        z, mu, logvar, log_weights = problem(6, 3, 4, device)
        one = logvar[:1].requires_grad_()
        found = mixture_log_prob(z.view(2, 3, 4), mu, one, log_weights, impl=KERNELS)
        expected = torchs(z, mu, one.expand(3, 4), log_weights).view(2, 3)
        torch.testing.assert_close(found, expected)
        weight = upstream((2, 3)).to(device)
        torch.testing.assert_close(
            *(torch.autograd.grad(t, one, weight)[0] for t in (found, expected))
        )

    @IMPLS
    def test_an_empty_batch(self, impl, device):
        leaves = [t.requires_grad_() for t in problem(0, 3, 2, device)]
        value = mixture_log_prob(*leaves, impl=impl)
        assert value.shape == (0,)
        gradients = torch.autograd.grad(value.sum(), leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            assert gradient.shape == leaf.shape
            assert (gradient == 0).all()

    def test_two_runs_are_bitwise_equal(self, device):
        tensors, weight = problem(200, 70, 9, device, dtype=F32), upstream((200,)).to(device)
        runs = [
            with_gradients(lambda *a: mixture_log_prob(*a, impl=KERNELS), tensors, weight)
            for _ in range(2)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.triton
@pytest.mark.parametrize("programs", [1, 3, 100])
def test_stretches(programs, device, monkeypatch):
    """Several programs for what is owned, and for the others one or more."""
    from fused_elbo.kernels.triton import pairs

    for name, value in (("OWN", 8), ("OTHERS", 4), ("PROGRAMS", programs)):
        monkeypatch.setattr(pairs, name, value)
    for size in ((3, 17, 2), (19, 9, 3)):
        check(problem(*size, device, dtype=F32), device=device)


@pytest.mark.numba
def test_mixtures_of_all_sizes_take_the_kernel(device, monkeypatch):
    """Small ones too: it is faster there than the reference, but for a few numbers on a CPU."""
    ran = watch(monkeypatch)
    if device == "cpu":
        mixture_log_prob(*problem(8, 4, 2, device))
        assert ran == []
    for tensors in (problem(8, 5, 2, device), problem(300, 200, 2, device)):
        mixture_log_prob(*tensors, impl="reference")
        assert ran == []
        mixture_log_prob(*tensors)
        assert ran == ["mixture_log_prob"]
        ran.clear()


class TestReference:
    def test_in_parts(self, monkeypatch):
        """Components are split from so many elements on, in value and all gradients."""
        tensors, weight = problem(6, 11, 3, "cpu"), upstream((6,))
        whole = with_gradients(lambda *a: mixture_log_prob(*a, impl="reference"), tensors, weight)
        monkeypatch.setattr(reference, "COMPARED", 6 * 3 * 2)
        parts = with_gradients(lambda *a: mixture_log_prob(*a, impl="reference"), tensors, weight)
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_func_and_compile(self, monkeypatch):
        z, mu, logvar, log_weights = problem(6, 11, 3, "cpu")
        expected = mixture_log_prob(z, mu, logvar, log_weights)
        for compared in (reference.COMPARED, 30):
            monkeypatch.setattr(reference, "COMPARED", compared)
            each = torch.func.vmap(lambda z: mixture_log_prob(z, mu, logvar, log_weights))(z)
            torch.testing.assert_close(each, expected)
            gradient = torch.func.grad(
                lambda mu: mixture_log_prob(z, mu, logvar, log_weights).sum()
            )(mu)
            leaf = mu.clone().requires_grad_()
            (usual,) = torch.autograd.grad(
                mixture_log_prob(z, leaf, logvar, log_weights).sum(), leaf
            )
            torch.testing.assert_close(gradient, usual)
            compiled = torch.compile(mixture_log_prob, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(z, mu, logvar, log_weights), expected)


@pytest.mark.numba
def test_nothing_of_the_size_of_all_pairs(device):
    """[rows, components] alone would be 16 times what the largest allocation is."""
    rows = components = 2048
    leaves = [t.requires_grad_() for t in problem(rows, components, 2, device, dtype=F32)]
    with torch.profiler.profile(profile_memory=True) as profile:
        mixture_log_prob(*leaves, impl=KERNELS).sum().backward()
    most = max((abs(e.self_cpu_memory_usage) for e in profile.events()), default=0)
    assert 0 < most < rows * components * 4 / 16


def test_through_torch_compile_it_is_one_op(device):
    tensors = [t.requires_grad_() for t in problem(5, 4, 3, device, dtype=F32)]
    compiled = torch.compile(
        lambda *a: mixture_log_prob(*a, impl=KERNELS), fullgraph=True, backend="aot_eager"
    )
    expected = mixture_log_prob(*tensors, impl=KERNELS)
    found = compiled(*tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for a, b in zip(
        *(torch.autograd.grad(t.sum(), tensors) for t in (found, expected)), strict=True
    ):
        assert torch.equal(a, b)
