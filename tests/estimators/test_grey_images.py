"""The mixture of logistics of grey images: one channel, three numbers per component."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import special, stats

from fused_elbo import discretized_mix_logistic_nll

F32, F64 = torch.float32, torch.float64
K, PIXELS = 3, (4, 5)


def problem(bits=8, dtype=F64):
    """params and whole levels, of two examples; the first and the last level are among them."""
    generator = torch.Generator().manual_seed(3)
    params = torch.randn(2, 3 * K, *PIXELS, generator=generator, dtype=F64)
    params[:, K : 2 * K] *= 0.5
    params[:, 2 * K :] -= 1.0
    level = torch.randint(2**bits, (2, 1, *PIXELS), generator=generator)
    level[:, :, 0, 0], level[:, :, 0, 1], level[:, :, 0, 2] = 0, 2**bits - 1, 2**bits - 2
    return params.to(dtype), (2.0 * level.to(F64) / (2**bits - 1) - 1).to(dtype)


def by_scipy(params, x, bits, right_edge):
    """Differences of the distribution function, on the side where they do not cancel."""
    logits, means, log_scales = params.unflatten(1, (3, K)).double().unbind(1)
    x, h = x.double().numpy(), 1 / (2**bits - 1)
    logistic = stats.logistic(means.numpy(), np.exp(np.maximum(log_scales.numpy(), -7)))
    lower = np.where(x < -0.999, -np.inf, x - h)
    upper = np.where(x > right_edge, np.inf, x + h)
    left = logistic.cdf(upper) - logistic.cdf(lower)
    right = logistic.sf(lower) - logistic.sf(upper)
    p = np.where(x < means.numpy(), left, right)
    mixed = (special.softmax(logits.numpy(), axis=1) * p).sum(1)
    return -torch.from_numpy(np.log(mixed)).flatten(1).sum(1)


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("right_edge", [0.999, 0.99])
@pytest.mark.parametrize("bits", [1, 5, 8])
def test_differences_of_the_distribution_function(bits, right_edge, impl):
    params, x = problem(bits)
    expected = by_scipy(params, x, bits, right_edge)
    options = {"bits": bits, "right_edge": right_edge, "impl": impl}
    found = discretized_mix_logistic_nll(params, x, K, **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    for reduction in ("sum", "mean"):
        found = discretized_mix_logistic_nll(params, x, K, reduction=reduction, **options)
        torch.testing.assert_close(found, getattr(expected, reduction)(), rtol=1e-11, atol=1e-11)


def test_float32_and_other_layouts():
    params, x = problem(dtype=F32)
    found = discretized_mix_logistic_nll(params, x, K)
    assert found.dtype == F32
    torch.testing.assert_close(found.double(), by_scipy(params, x, 8, 0.999), rtol=2e-5, atol=0)
    last = params.to(memory_format=torch.channels_last)
    torch.testing.assert_close(discretized_mix_logistic_nll(last, x, K), found)
    flat = discretized_mix_logistic_nll(params.flatten(2), x.flatten(2), K)
    torch.testing.assert_close(flat, found)


@pytest.mark.parametrize("log_scale", [-12.0, -4.0, 0.0, 10.0])
def test_probabilities_of_256_levels_add_up_to_one(log_scale):
    """Each level as an image of one pixel."""
    params = torch.randn(1, 3 * K, 1, generator=torch.Generator().manual_seed(4), dtype=F64)
    params[:, 2 * K :] += log_scale
    x = torch.linspace(-1, 1, 256, dtype=F64).reshape(256, 1, 1)
    nll = discretized_mix_logistic_nll(params.expand(256, -1, -1), x, K)
    assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-12)


def test_a_grey_image_is_the_red_of_one_whose_other_colors_are_certain():
    params, x = problem()
    numbers = params.unflatten(1, (3, K))
    rgb = torch.zeros(2, 3, 3, K, *PIXELS, dtype=F64)
    rgb[:, 0, :2] = numbers[:, 1:]
    rgb[:, 1:, 0], rgb[:, 1:, 1] = -9.0, -7.0  # the first level
    rgb = torch.cat((numbers[:, 0], rgb.flatten(1, 3)), 1)
    first = torch.full_like(x, -1.0)
    expected = discretized_mix_logistic_nll(rgb, torch.cat((x, first, first), 1), K)
    torch.testing.assert_close(discretized_mix_logistic_nll(params, x, K), expected)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_gradients(reduction):
    params, x = problem()
    function = lambda p: discretized_mix_logistic_nll(p, x, K, reduction=reduction)  # noqa: E731
    assert torch.autograd.gradcheck(function, params.requires_grad_())
    low = params.detach().clone()
    low[:, 2 * K :] = -8.0
    low.requires_grad_()
    (gradient,) = torch.autograd.grad(function(low).sum(), low)
    assert (gradient[:, 2 * K :] == 0).all()
    assert gradient.isfinite().all()


def test_no_digit_is_lost_far_from_all_means():
    """The logarithm of the density of a tail, times the width of a bin, at 800 scales."""
    params, x = torch.tensor([[0.0, -0.6, -7.0]]).reshape(1, 3, 1), torch.full((1, 1, 1), 0.2)
    x = (x * 127.5).round() / 127.5 + 1 / 255
    a, root = (x.double().item() + 0.6) * math.exp(7), math.exp(7)
    h = root / 255
    exact = (a - h) - math.log1p(-math.exp(-2 * h))
    found = discretized_mix_logistic_nll(params, x, 1)
    assert found.item() == pytest.approx(exact, rel=1e-5)


def test_an_empty_batch():
    params, x = problem()
    assert discretized_mix_logistic_nll(params[:0], x[:0], K).shape == (0,)


def test_under_torch_compile():
    params, x = problem(dtype=F32)
    function = lambda p: discretized_mix_logistic_nll(p, x, K, reduction="mean")  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(params), function(params))


@pytest.mark.parametrize("impl", ["triton", "numba"])
def test_kernels_have_rgb_only(impl):
    params, x = problem()
    with pytest.raises(RuntimeError, match=f"impl='{impl}'.*RGB images only, and x is grey"):
        discretized_mix_logistic_nll(params, x, K, impl=impl)


def test_data_are_checked_as_those_of_colors():
    params, x = problem()
    with pytest.raises(ValueError, match=r"x must be in \[-1, 1\].*2 \* x / 255 - 1"):
        discretized_mix_logistic_nll(params, (x + 1) * 127.5, K)
    with pytest.raises(TypeError, match=r"2 \* x.float\(\) / 255 - 1"):
        discretized_mix_logistic_nll(params, x.byte(), K)
    with pytest.warns(UserWarning, match=r"\[0, 1\].*2 \* x - 1"):
        discretized_mix_logistic_nll(params, (x + 1) / 2, K)
    with pytest.raises(ValueError, match="x is data and has no gradient"):
        discretized_mix_logistic_nll(params, x.clone().requires_grad_(), K)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        discretized_mix_logistic_nll(params, x, K)
