"""Binary cross-entropy on probabilities: torch's clamps, at 0 and 1 and beside them."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from fused_elbo import compat
from helpers.machine import KERNELS
from helpers.originals import (
    BF16,
    F16,
    F32,
    F64,
    LIBRARIES,
    PIXELS,
    PROBABILITY_LOSSES,
    Case,
    compare,
    kl_to_standard,
)

IMPLS = pytest.mark.parametrize("impl", ["reference", KERNELS])
pytestmark = pytest.mark.usefixtures("one_thread")

EDGES = [0.0, 1e-60, 1e-44, 1e-20, 1e-13, 1e-7, 0.3, 1 - 1e-7, 1 - 1e-13, 1 - 2**-53, 1.0]


@IMPLS
@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("p", EDGES)
def test_probabilities_of_0_and_1(p, x, impl, device):
    """The value clamps either logarithm; the gradient is (p - x) / max(p (1 - p), 1e-12)."""
    log_p = max(math.log(p), -100.0) if p > 0 else -100.0
    log_not_p = max(math.log1p(-p), -100.0) if p < 1 else -100.0
    value = -x * log_p - (1 - x) * log_not_p
    slope = (p - x) / max(p * (1 - p), torch.tensor(1e-12).item())  # torch's is a float32
    for function, share in (
        (compat.pytorch_examples_vae_loss, 1),
        (lambda *t, impl: compat.pythae_vae_loss(*t, reconstruction_loss="bce", impl=impl)[0], 2),
    ):
        probability = torch.full((2, 3), p, dtype=F64, device=device, requires_grad=True)
        data = torch.full((2, 3), x, dtype=F64, device=device, requires_grad=True)
        zero = torch.zeros(2, 1, dtype=F64, device=device)
        loss = function(probability, data, zero, zero, impl=impl)
        assert loss.item() == pytest.approx(6 * value / share, rel=1e-12)
        loss.backward()
        expected = torch.full((2, 3), slope / share, dtype=F64)
        torch.testing.assert_close(probability.grad.cpu(), expected, rtol=1e-12, atol=0)
        exact = torch.tensor(p, dtype=F64)  # not clamped
        expected = ((torch.log1p(-exact) - exact.log()) / share).expand(2, 3)
        torch.testing.assert_close(data.grad.cpu(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
def test_every_probability_of_float32(x, device):
    """Value and gradient of each alone, subnormal numbers and both ends among them."""
    small = torch.logspace(-45, -0.31, 400, dtype=F64).float()
    p = torch.cat([small, 1 - small, torch.tensor([0.0, 1.0])])
    data = torch.full_like(p, x)
    exact = p.double()
    value = F.binary_cross_entropy(exact, data.double(), reduction="none")
    slope = (exact - x) / torch.clamp_min(exact * (1 - exact), torch.tensor(1e-12).item())
    for i in range(0, len(p), 7):
        leaf = p[i : i + 1].to(device).requires_grad_()
        target = data[i : i + 1].to(device)
        loss = compat.binary_cross_entropy(leaf, target, reduction="sum", impl=KERNELS)
        torch.testing.assert_close(loss.double().cpu(), value[i].detach(), rtol=4e-7, atol=1e-44)
        loss.backward()
        torch.testing.assert_close(leaf.grad.double().cpu(), slope[i : i + 1], rtol=5e-7, atol=0)


OUTSIDE = [-1e-6, 1.0 + 1e-6, float("nan")]
CROSS_ENTROPIES = {
    "examples": compat.pytorch_examples_vae_loss,
    "pythae": functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce"),
}


@pytest.mark.parametrize("wrong", OUTSIDE)
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
@pytest.mark.parametrize("which", [0, 1], ids=["recon", "data"])
def test_probabilities_outside_0_and_1(wrong, name, which):
    images, zero = [torch.full((2, 3), 0.5), torch.ones(2, 3)], torch.zeros(2, 1)
    images[which][1, 2] = wrong
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        CROSS_ENTROPIES[name](*images, zero, zero)


@pytest.mark.triton  # on CPUs numba's NaN is looked at, and torch's error raised
@pytest.mark.parametrize("wrong", [*OUTSIDE, -5.0, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1], ids=["input", "target"])
def test_probabilities_in_the_kernel(wrong, which, device):
    """Nobody looks: the loss is NaN, and so is the gradient there, which the formula has not."""
    images = [torch.full((2, 3), 0.25), torch.ones(2, 3)]
    images[which][1, 2] = wrong
    input, target = (t.to(device) for t in images)
    loss = compat.binary_cross_entropy(input.requires_grad_(), target, impl=KERNELS)
    loss.backward()
    assert loss.isnan()
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[1, 2] = True
    assert torch.equal(input.grad.isnan().cpu(), bad)


def test_a_second_backward_computes_the_cross_entropy_again(device):
    """The first hands over what forward wrote, scaled in place."""
    p, x = Case("", ("probabilities",) * 2, None, None).tensors(F64, device)
    loss = compat.binary_cross_entropy(p, x, impl=KERNELS)
    first = torch.autograd.grad(3.0 * loss, (p, x), retain_graph=True)
    second = torch.autograd.grad(2.0 * loss, (p, x))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(2.0 * a, 3.0 * b, rtol=1e-14, atol=0)


def test_probabilities_that_are_left_to_torch(device):
    """float16 and autocast: "auto" gives torch's number, "triton" refuses; whole losses do not."""
    p, x = (t.detach().to(device) for t in PROBABILITY_LOSSES[0].tensors(F32))
    mu, logvar = (t.detach().to(device) for t in Case("", ("latent",) * 2, None, None).tensors(F32))
    for dtype in (F16, F32):
        p, x, mu, logvar = (t.to(dtype) for t in (p, x, mu, logvar))
        with torch.autocast(device, BF16, enabled=dtype == F32):
            with pytest.raises(RuntimeError, match="no kernel supports"):
                compat.binary_cross_entropy(p, x, impl=KERNELS)
            if device != "cpu" and dtype == F32:
                continue  # on CUDA torch refuses under autocast
            mean, total = (F.binary_cross_entropy(p, x, reduction=r) for r in ("mean", "sum"))
            assert torch.equal(compat.binary_cross_entropy(p, x), mean)
            kl = kl_to_standard(mu, logvar)
            loss = compat.pytorch_examples_vae_loss(p.flatten(1), x, mu, logvar, impl=KERNELS)
            torch.testing.assert_close(loss, total + kl.sum(), rtol=2e-3, atol=0)
            loss, *_ = CROSS_ENTROPIES["pythae"](p, x, mu, logvar, impl=KERNELS)
            torch.testing.assert_close(loss, PIXELS * mean + kl.mean(), rtol=2e-3, atol=0)


def test_probabilities_in_a_compiled_loss(device):
    """The compiler has torch's cross-entropy, and the kernel of the KL."""
    leaves, same = (LIBRARIES[0].tensors(F64, device) for _ in range(2))
    loss = torch.compile(compat.pytorch_examples_vae_loss, backend="aot_eager", fullgraph=True)
    compare(loss(*leaves, impl=KERNELS), LIBRARIES[0].original(*same), leaves, same, F64)
