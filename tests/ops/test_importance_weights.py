"""Importance weights of K samples: values, gradients, extremes, layouts."""

import math

import pytest
import torch

from fused_elbo import importance_weights
from helpers.machine import KERNELS
from helpers.samples import IMPLS, SAMPLES, normal

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


class TestWeights:
    @pytest.mark.parametrize("samples", SAMPLES)
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, -1.0])
    @IMPLS
    def test_against_the_definition(self, alpha, samples, impl, device):
        log_weights = (3 * normal(samples, 5, device=device)).requires_grad_()
        bound, weights, ess = importance_weights(log_weights, alpha, impl=impl)
        power = (1 - alpha) * log_weights.detach()
        expected = torch.softmax(power, 0)
        if alpha == 1:
            value = log_weights.detach().mean(0)
        else:
            value = (torch.logsumexp(power, 0) - math.log(samples)) / (1 - alpha)
        torch.testing.assert_close(bound.detach(), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ess, 1 / expected.square().sum(0), rtol=1e-12, atol=1e-12)
        upstream = normal(5, seed=2, device=device)
        (gradient,) = torch.autograd.grad(bound, log_weights, upstream)
        torch.testing.assert_close(gradient, upstream * expected, rtol=1e-12, atol=1e-12)

    @IMPLS
    def test_gradcheck(self, impl, device):
        log_weights = normal(4, 2, 3, device=device).requires_grad_()
        for alpha in (0.0, 0.3, 1.0):
            assert torch.autograd.gradcheck(
                lambda w: importance_weights(w, alpha, impl=impl).bound,  # noqa: B023
                log_weights,
            )

    @pytest.mark.parametrize("dtype", [F32, F64])
    @IMPLS
    def test_extremes(self, impl, dtype, device):
        """Apart by 1e4, all -inf, one that is not, one +inf, and a NaN: an example each."""
        inf = math.inf
        log_weights = torch.tensor(
            [
                [1e4, -inf, -inf, 0.0, math.nan],
                [0.0, -inf, -3.0, inf, 0.0],
                [-1e4, -inf, -inf, 1.0, 1.0],
            ],
            dtype=dtype,
            device=device,
        ).requires_grad_()
        bound, weights, ess = importance_weights(log_weights, impl=impl)
        log_3 = math.log(3)
        values = torch.tensor([1e4 - log_3, -inf, -3.0 - log_3, inf, math.nan], dtype=dtype)
        torch.testing.assert_close(bound.detach().cpu(), values, equal_nan=True)
        expected = torch.tensor(
            [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=dtype
        )
        torch.testing.assert_close(weights[:, :4].cpu(), expected)
        assert weights[:, 4].isnan().all()
        sizes = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=dtype)
        torch.testing.assert_close(ess[:4].cpu(), sizes)
        (gradient,) = torch.autograd.grad(bound[:3].sum(), log_weights)
        torch.testing.assert_close(gradient[:, :3].cpu(), expected[:, :3])

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 2.0, -1.0])
    def test_limits_of_every_order(self, alpha, device):
        """All weights 0, some infinite, one 0, a NaN; equal, far apart and nearly equal ones."""
        inf = math.inf
        examples = [[-inf] * 3, [inf, 0.0, inf], [-inf, 0.0, 1.0], [math.nan, 0.0, 1.0]]
        examples += [[-200.0] * 3, [1e38, -1e38, 0.0], [1e-6, 0.0, -1e-6]]
        log_weights = torch.tensor(examples, device=device).T
        found = [importance_weights(log_weights, alpha, impl=i) for i in (KERNELS, "reference")]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)

    @pytest.mark.parametrize("alpha", [1 - 1e-3, 1 - 1e-6, 1 + 1e-6])
    @IMPLS
    def test_continuous_at_one(self, alpha, impl, device):
        """In float32 the logarithm of a mean of weights to the power 1e-6 cancels."""
        log_weights = normal(8, 3, device=device) - 100
        exact = importance_weights(log_weights, alpha, impl="reference").bound
        order = 1 - alpha
        direct = (torch.logsumexp(order * log_weights, 0) - math.log(8)) / order
        torch.testing.assert_close(exact, direct, rtol=1e-6, atol=1e-6)
        single = importance_weights(log_weights.float(), alpha, impl=impl).bound
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=3e-5)

    @pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
    def test_layouts_and_more_dimensions(self, layout, device):
        if layout == "transposed":
            log_weights = normal(3, 4, 70, device=device).permute(2, 0, 1)
        elif layout == "expanded":
            log_weights = normal(70, 1, 1, device=device).expand(70, 3, 4)
        else:
            log_weights = normal(140, 3, 8, device=device)[::2, :, ::2]
        actual = importance_weights(log_weights, impl=KERNELS)
        expected = importance_weights(log_weights.contiguous(), impl="reference")
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    def test_empty_batch(self, device):
        log_weights = torch.zeros(4, 0, device=device, requires_grad=True)
        bound, weights, ess = importance_weights(log_weights, impl=KERNELS)
        assert (bound.shape, weights.shape, ess.shape) == ((0,), (4, 0), (0,))
        assert torch.autograd.grad(bound.sum(), log_weights)[0].shape == (4, 0)

    @pytest.mark.triton
    def test_no_second_derivative(self, device):
        log_weights = normal(4, 3, device=device).requires_grad_()
        bound = importance_weights(log_weights, impl=KERNELS).bound
        (gradient,) = torch.autograd.grad(bound.sum(), log_weights, create_graph=True)
        with pytest.raises(RuntimeError, match="impl='reference'"):
            gradient.square().sum().backward()

    def test_float16_and_bfloat16_are_summed_in_float32(self, device):
        for dtype in (F16, BF16):
            log_weights = normal(300, 3, device=device).to(dtype)
            bound, weights, _ = importance_weights(log_weights, impl=KERNELS)
            assert bound.dtype == weights.dtype == F32
            exact = torch.logsumexp(log_weights.double(), 0) - math.log(300)
            torch.testing.assert_close(bound.double(), exact, rtol=0, atol=2e-6)
