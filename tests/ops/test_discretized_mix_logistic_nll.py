"""The discretised mixture of logistics: accuracy, gradients, bins, extremes, layouts."""

import itertools
import math

import mpmath
import pytest
import torch

from fused_elbo import discretized_mix_logistic_nll
from fused_elbo.estimators.dispatch import likelihood_calls
from fused_elbo.kernels import ops
from helpers.accuracy import ATOL, LOW, rounding
from helpers.machine import INTERPRET, KERNELS
from helpers.oracle import upstream
from helpers.originals import original_mix_logistic
from helpers.samples import IMPLS, normal

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# K and pixels: of a CPU's blocks of 128 less, just as many and more, and powers of two and others.
SIZES = [(1, (1,)), (1, (3, 43)), (3, (5, 7)), (10, (2, 64)), (2, (130,))]


def levels(bits=8):
    return torch.linspace(-1, 1, 2**bits, dtype=F64)


def problem(mixtures, pixels, device="cpu", *, examples=2, log_scale=-3.0, dtype=F64):
    """Levels of random pixels, the edges among them, and means that are near them or are not."""
    params = normal(examples, 10 * mixtures, *pixels, seed=1)
    colors = params[:, mixtures:].unflatten(1, (3, 3, mixtures))
    generator = torch.Generator().manual_seed(2)
    x = levels()[torch.randint(0, 256, (examples, 3, *pixels), generator=generator)]
    edge = torch.rand(x.shape, generator=generator)
    x = torch.where(edge < 0.1, -1.0, torch.where(edge > 0.9, 1.0, x))
    colors[:, :, 0] *= 0.5
    colors[:, :, 1] += log_scale
    return params.to(device, dtype), x.to(device, dtype)


def with_gradient(function, params, weight, view=lambda t: t):
    leaf = params.detach().clone().requires_grad_()
    value = function(view(leaf))
    (gradient,) = torch.autograd.grad(value, leaf, weight.to(value.dtype))
    return value.detach(), gradient


def exact(params, x, half_bin=1 / 255, right_edge=0.999):
    """The definition, in 50 digits, for each example."""
    mp, found = mpmath.mp, []

    def sigmoid(a):
        return 1 / (1 + mpmath.exp(-a))

    def bin_of(value, mean, log_scale):
        scale, h = mpmath.exp(max(log_scale, -7)), mpmath.mpf(half_bin)
        below = 0 if value < -0.999 else sigmoid((value - h - mean) / scale)
        return (1 if value > right_edge else sigmoid((value + h - mean) / scale)) - below

    with mp.workdps(2500):  # bins that are far from all means differ in the 2000th digit
        for numbers, colors in zip(params.flatten(2), x.flatten(2), strict=True):
            total = mpmath.mpf(0)
            for column, pixel in zip(numbers.t().tolist(), colors.t().tolist(), strict=True):
                column, (r, g, b) = [mpmath.mpf(v) for v in column], map(mpmath.mpf, pixel)
                k = len(column) // 10
                weights = [mpmath.exp(v) for v in column[:k]]
                p = mpmath.mpf(0)
                for i, w in enumerate(weights):
                    m0, s0, a0, m1, s1, a1, m2, s2, a2 = column[k + i :: k]
                    p += (
                        w
                        * bin_of(r, m0, s0)
                        * bin_of(g, m1 + mpmath.tanh(a0) * r, s1)
                        * bin_of(b, m2 + mpmath.tanh(a1) * r + mpmath.tanh(a2) * g, s2)
                    )
                total -= mpmath.log(p / sum(weights))
            found.append(float(total))
    return torch.tensor(found, dtype=F64)


def normaliser(params, mixtures):
    """The weights of the other mixtures, beside the first one's."""
    logits = params[:, :mixtures]
    return (torch.logsumexp(logits, 1) - logits[:, 0]).sum(1)


def nll(x, mixtures, impl=KERNELS, **options):
    return lambda params: discretized_mix_logistic_nll(params, x, mixtures, impl=impl, **options)


class TestValue:
    @IMPLS
    @pytest.mark.parametrize("log_scale", [-9.0, 0.0, 800.0])
    def test_in_many_digits(self, log_scale, impl, device):
        """With bins that are far too improbable for a difference in float64."""
        params, x = problem(2, (2,), log_scale=log_scale)
        x[0, :, 0] = levels()[254]
        for right_edge in (0.999, 0.99):
            found = nll(x.to(device), 2, impl, right_edge=right_edge)(params.to(device))
            expected = exact(params, x, right_edge=right_edge)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-13, atol=1e-12)

    @IMPLS
    def test_is_the_published_formula_where_that_holds(self, impl, device):
        params, x = problem(3, (4, 5), device, log_scale=0.0)
        weight = upstream((2,)).to(device)
        found = with_gradient(nll(x, 3, impl), params, weight)
        expected = with_gradient(
            lambda p: original_mix_logistic(p, x, guard=0.0).sum((1, 2)), params, weight
        )
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-6)

    @IMPLS
    @pytest.mark.parametrize("bits", [1, 2])
    def test_probabilities_of_all_colors_add_up_to_one(self, bits, impl, device):
        every = torch.tensor(list(itertools.product(levels(bits), repeat=3)), dtype=F64)
        x = every.t()[None].to(device)
        params, _ = problem(3, (1,), device, examples=1, log_scale=-1.0)
        params = params.expand(1, 30, x.shape[2])
        bins = 1 / (2**bits - 1), 0.999, 0.0
        p = torch.exp(-likelihood_calls.discretized_mix_logistic_nll(params, x, *bins, impl=impl))
        assert p.sum().item() == pytest.approx(1, abs=1e-13)

    @IMPLS
    @pytest.mark.parametrize("log_scale", [-12.0, -4.0, 0.0, 10.0])
    def test_256_bins_add_up_to_one(self, log_scale, impl, device):
        """Blue, beside a red and a green that are certain."""
        params, _ = problem(2, (1,), device, examples=1, log_scale=log_scale)
        colors = params[:, 2:].unflatten(1, (3, 3, 2))
        colors[:, :2, 0], colors[:, :2, 1] = -9.0, -7.0
        x = torch.full((1, 3, 256), -1.0, dtype=F64, device=device)
        x[0, 2] = levels().to(device)
        given = params.expand(1, 20, 256), x, 1 / 255
        p, wider = (
            torch.exp(-likelihood_calls.discretized_mix_logistic_nll(*given, edge, 0.0, impl=impl))
            for edge in (0.999, 0.99)
        )
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        # From 0.99 on 254 is an edge too, and counts what 255 does.
        assert wider.sum().item() == pytest.approx(1 + p[0, -1].item(), abs=1e-12)

    @IMPLS
    def test_reductions(self, impl, device):
        params, x = problem(2, (3, 3), device)
        each, total, mean = (nll(x, 2, impl, reduction=r)(params) for r in ("none", "sum", "mean"))
        assert each.shape == (2,)
        torch.testing.assert_close(total, each.sum())
        torch.testing.assert_close(mean, each.mean())


class TestAccuracy:
    @pytest.mark.parametrize(
        ("size", "dtype"), [*((s, F32) for s in SIZES), (SIZES[2], BF16), (SIZES[2], F16)], ids=str
    )
    def test_bar(self, size, dtype, device):
        """Twice the published formula's error, and a few roundings of the largest number."""
        mixtures, pixels = size
        params, x = problem(mixtures, pixels, device, dtype=dtype)
        weight = upstream((2,)).to(device)
        wide = params.double(), x.double()
        oracle = with_gradient(nll(wide[1], mixtures, "reference"), wide[0], weight)
        # The formula overflows in float16; and what is above it in float32 is below in float16.
        eager_dtype = F32 if dtype in LOW else dtype
        eager = with_gradient(
            lambda p: original_mix_logistic(p, x.to(eager_dtype)).flatten(1).sum(1),
            params.to(eager_dtype),
            weight,
        )
        found = with_gradient(nll(x, mixtures), params, weight)
        assert found[0].dtype == F32
        assert found[1].dtype == dtype
        for f, e, o in zip(found, eager, oracle, strict=True):
            bar = 2 * (e - o).abs().max() + ATOL * rounding(f.dtype) * o.abs().max()
            assert (f - o).abs().max() <= bar

    @pytest.mark.parametrize("log_scale", [-7.0, -3.0, 8.0, 30.0, 120.0])
    def test_of_far_and_flat_bins_no_digit_is_lost(self, log_scale, device):
        """In float32: where the published guard takes over, or the difference is rounding."""
        params, x = problem(2, (40,), device, log_scale=log_scale, dtype=F32)
        colors = params[:, 2:].unflatten(1, (3, 3, 2))
        colors[:, :, 1] = log_scale
        colors[:, :, 0, :, ::2] += 0.5
        weight = torch.ones(2, device=device)
        oracle = with_gradient(nll(x.double(), 2, "reference"), params.double(), weight)
        for impl in (KERNELS, "reference"):
            found = with_gradient(nll(x, 2, impl), params, weight)
            # The distance to a mean, at 1e-7, in units of the scale; and three logarithms of it.
            tolerance = 3e-6 + 2e-7 * math.exp(max(-log_scale, 0.0)) + 4e-7 * max(log_scale, 0.0)
            for f, o in zip(found, oracle, strict=True):
                torch.testing.assert_close(
                    f.double(), o, rtol=2e-5, atol=tolerance * float(o.abs().max())
                )


class TestExtremes:
    @IMPLS
    def test_log_scales_are_clamped(self, impl, device):
        """In value, and with a gradient of 0 below."""
        params, x = problem(1, (6,), device, examples=1, log_scale=0.0)
        colors = params[:, 1:].unflatten(1, (3, 3, 1))
        colors[:, :, 1] = torch.tensor([-50.0, -7.5, -7.0, -6.9, -7.001, -6.0], dtype=F64)
        clamped = params.clone()
        clamped[:, 1:].unflatten(1, (3, 3, 1))[:, :, 1].clamp_(min=-7.0)
        weight = torch.ones(1, device=device)
        found, expected = (with_gradient(nll(x, 1, impl), p, weight) for p in (params, clamped))
        torch.testing.assert_close(found[0], expected[0])
        gradient = found[1][:, 1:].unflatten(1, (3, 3, 1))[:, :, 1]
        assert (gradient[..., [0, 1, 4]] == 0).all()
        assert (gradient[..., [2, 3, 5]] != 0).all()

    @pytest.mark.parametrize("dtype", [F32, F64], ids=str)
    def test_impossible_mixtures_make_no_nan(self, dtype, device):
        """A mean at infinity, and a weight of 0: their gradients are 0."""
        params, x = problem(4, (5,), device, dtype=dtype)
        params[:, 4 + 1] = 1e38
        params[:, 2] = -math.inf
        params[:, 4 + 3] = math.inf
        weight = torch.ones(2, device=device)
        value, gradient = with_gradient(nll(x, 4), params, weight)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient[:, 4:].unflatten(1, (9, 4))[:, :, 1:] == 0).all()
        torch.testing.assert_close(value, nll(x, 1)(params[:, ::4]) + normaliser(params, 4))

    @IMPLS
    def test_impossible_of_all_mixtures(self, impl, device):
        params, x = problem(2, (2,), device, examples=1)
        params[:, 2:4, 0] = math.inf
        found = nll(x, 2, impl)(params)
        assert found.item() == math.inf
        if impl == KERNELS:
            _, gradient = with_gradient(nll(x, 2), params, torch.ones(1, device=device))
            assert (gradient[..., 0][:, 2:] == 0).all()
            assert gradient[..., 1].isfinite().all()

    @IMPLS
    def test_nan_stays_where_it_is(self, impl, device):
        """Gradients in each of the 10 numbers, in edge bins too."""
        params, x = problem(2, (10, 3), device)
        x[:] = torch.tensor([-1.0, 0.0, 1.0], dtype=F64)
        for number in range(10):
            params[1, 2 * number, number] = math.nan
        found = likelihood_calls.discretized_mix_logistic_nll(
            params, x, 1 / 255, 0.999, 0.0, impl=impl
        )
        assert not found[0].isnan().any()
        assert found[1].isnan().all()


class TestGradients:
    @IMPLS
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_gradcheck(self, reduction, impl, device):
        params, x = problem(2, (3,), device, log_scale=-2.0)
        x[:, :, 0], x[:, :, 1] = -1.0, 1.0
        function = nll(x, 2, impl, reduction=reduction)
        assert torch.autograd.gradcheck(function, params.requires_grad_(), fast_mode=INTERPRET)

    def test_gradcheck_of_pixels(self, device):
        """Each with its own upstream gradient, and bins on both sides of the guard."""
        params, x = problem(2, (5,), device)
        assert torch.autograd.gradcheck(
            lambda p: ops.discretized_mix_logistic_nll(p, x, 1 / 255, 0.99, 0.01),
            params.requires_grad_(),
            fast_mode=INTERPRET,
        )

    @pytest.mark.parametrize("dtype", [F32, F16], ids=str)
    def test_of_a_loss_is_that_of_the_values(self, dtype, device):
        params, x = problem(3, (20,), device, dtype=dtype)
        weight = torch.full((2,), 1.5, device=device)
        _, expected = with_gradient(nll(x, 3), params, weight)
        leaf = params.clone().requires_grad_()
        loss = nll(x, 3, reduction="mean")(leaf)
        options = {"rtol": 2e-3 if dtype == F16 else 1e-6, "atol": 1e-6}
        (loss * 3).backward(retain_graph=True)
        torch.testing.assert_close(leaf.grad, expected, **options)
        (again,) = torch.autograd.grad(loss * 3, leaf)
        torch.testing.assert_close(again, expected, **options)

    def test_without_a_gradient_none_is_computed(self, device):
        params, x = problem(2, (3,), device)
        made = ops.discretized_mix_logistic_loss_forward(
            params, x, 1 / 255, 0.999, 0.0, 1.0, [False]
        )
        assert len(made) == 1
        assert not nll(x, 2, reduction="mean")(params).requires_grad

    @pytest.mark.numba
    @pytest.mark.parametrize("reduction", ["none", "sum"])
    def test_second_derivatives_on_cpus(self, reduction, device):
        params, x = problem(1, (2,), device, log_scale=-2.0)
        function = nll(x, 1, reduction=reduction)
        assert torch.autograd.gradgradcheck(function, params.requires_grad_())

    @pytest.mark.triton
    def test_second_derivatives_are_refused(self, device):
        params, x = problem(1, (2,), device)
        params.requires_grad_()
        value = nll(x, 1, reduction="sum")(params)
        (gradient,) = torch.autograd.grad(value, params, create_graph=True)
        with pytest.raises(RuntimeError, match="impl='reference'"):
            gradient.square().sum().backward()

    @IMPLS
    def test_an_empty_batch(self, impl, device):
        params, x = problem(2, (3,), device, examples=0)
        for reduction, expected in (("none", []), ("sum", 0.0), ("mean", math.nan)):
            leaf = params.clone().requires_grad_()
            value = nll(x, 2, impl, reduction=reduction)(leaf)
            torch.testing.assert_close(
                value.detach().cpu(), torch.tensor(expected, dtype=F64), equal_nan=True
            )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            assert gradient.shape == params.shape


# From the leaf, a tensor [B, channels, H, W] in some layout.
LAYOUTS = {
    "channels_last": (
        lambda t: t.permute(0, 2, 3, 1).contiguous(),
        lambda t: t.permute(0, 3, 1, 2),
    ),
    "cropped": (
        lambda t: torch.nn.functional.pad(t, (1, 2, 3, 1), value=math.nan),
        lambda t: t[:, :, 3:-1, 1:-2],
    ),
    "transposed": (lambda t: t.transpose(2, 3).contiguous(), lambda t: t.transpose(2, 3)),
    "channels_apart": (lambda t: t.repeat_interleave(2, 1), lambda t: t[:, ::2]),
}


@pytest.mark.parametrize(
    ("layout", "dtype"), [*((layout, F32) for layout in LAYOUTS), ("channels_last", BF16)], ids=str
)
def test_layouts(layout, dtype, device):
    """Bit for bit the results of contiguous tensors."""
    lay, view = LAYOUTS[layout]
    params, x = problem(3, (4, 6), device, dtype=dtype)
    weight = upstream((2,)).to(device)
    expected = with_gradient(nll(x, 3), params, weight)
    leaf = lay(params).requires_grad_()
    value = nll(view(lay(x)), 3)(view(leaf))
    (gradient,) = torch.autograd.grad(value, leaf, weight.to(value.dtype))
    assert torch.equal(value, expected[0])
    assert torch.equal(view(gradient), expected[1])


def test_expanded_params(device):
    """One distribution for all pixels of all examples."""
    params, x = problem(2, (3, 5), device)
    one = params[:1, :, :1, :1]
    weight = upstream((2,)).to(device)
    view = lambda t: t.expand(2, 20, 3, 5)  # noqa: E731
    found = with_gradient(nll(x, 2), one, weight, view)
    expected = with_gradient(nll(x, 2), one, weight, lambda t: view(t).contiguous())
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


@pytest.mark.numba
def test_nothing_larger_than_params_is_allocated(device):
    """Where the formula has a dozen tensors of three numbers a mixture."""
    params, x = problem(10, (32, 32), device, dtype=F32)
    params.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        nll(x, 10, reduction="mean")(params).backward()
    sizes = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert max(sizes) <= params.numel() * 4
    assert sum(sizes) < 1.2 * params.numel() * 4


def test_through_torch_compile_it_is_one_op(device):
    params, x = problem(2, (3, 4), device, dtype=F32)
    params.requires_grad_()
    function = nll(x, 2, reduction="mean")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = compiled(params), function(params)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(t.sum(), params)[0] for t in (found, expected))
    )


def test_reference_under_func_and_compile():
    params, x = problem(2, (3,))
    expected = nll(x, 2, "reference")(params)
    each = torch.func.vmap(lambda p, x: discretized_mix_logistic_nll(p[None], x[None], 2)[0])
    torch.testing.assert_close(each(params, x), expected)
    compiled = torch.compile(nll(x, 2, "auto"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params), expected)


def test_every_mixture_has_its_place(device):
    """More of them than a GPU's tile, in an order of their own."""
    mixtures = 600
    params, x = problem(mixtures, (2,), device, examples=1)
    order = torch.randperm(mixtures, generator=torch.Generator().manual_seed(0))
    mixed = params.unflatten(1, (10, mixtures))[:, :, order].flatten(1, 2)
    weight = torch.ones(1, device=device)
    (a, da), (b, db) = (with_gradient(nll(x, mixtures), p, weight) for p in (params, mixed))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(da.unflatten(1, (10, mixtures))[:, :, order].flatten(1, 2), db)
    torch.testing.assert_close(a, nll(x, mixtures, "reference")(params))


def test_dispatch_takes_the_loss_where_it_can(device, monkeypatch):
    from helpers.launches import watch

    ran = watch(monkeypatch)
    params, x = problem(2, (3,), device, dtype=F32)
    options = {"scale": 1.0, "impl": KERNELS}
    for dtype in (F32, F16):
        likelihood_calls.discretized_mix_logistic_nll(
            params.to(dtype), x, 1 / 255, 0.999, 0.0, **options
        )
    assert ran == ["discretized_mix_logistic_loss", "discretized_mix_logistic_nll"]
