"""The mixtures of logistics of VDVAE and NVAE: their numbers, the guard included."""

import math

import pytest
import torch

from fused_elbo import compat, discretized_mix_logistic_nll
from helpers.machine import KERNELS
from helpers.originals import original_nvae, original_vdvae
from helpers.samples import normal

F16, F32, F64 = torch.float16, torch.float32, torch.float64
IMPLS = pytest.mark.parametrize("impl", ["reference", KERNELS])


def images(mixtures, bits=8, *, log_scale=-3.0, device="cpu"):
    """params [2, 10 K, 4, 5] and levels in [0, 1]; a third of the bins is behind the guard."""
    params = normal(2, 10 * mixtures, 4, 5, seed=1)
    params[:, mixtures:].unflatten(1, (3, 3, mixtures))[:, :, 1] += log_scale
    most = 2**bits - 1
    generator = torch.Generator().manual_seed(2)
    levels = torch.randint(0, most + 1, (2, 3, 4, 5), generator=generator)
    levels[0, :, 0], levels[0, :, 1], levels[0, :, 2] = 0, most, most - 1
    return params.to(device), levels.double().to(device) / most


def assert_same(ours, original, leaf):
    """Rounding is the original's, in the difference of two sigmoids that it takes the log of."""
    torch.testing.assert_close(ours, original, rtol=1e-9, atol=1e-9)
    upstream = torch.linspace(0.5, 2.0, ours.numel(), dtype=F64, device=ours.device).view_as(ours)
    found, expected = (torch.autograd.grad(t, leaf, upstream)[0] for t in (ours, original))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@IMPLS
@pytest.mark.parametrize("low_bit", [False, True])
@pytest.mark.parametrize("log_scale", [-6.0, -3.0, 0.0])
def test_vdvae(log_scale, low_bit, impl, device):
    params, samples = images(3, 5 if low_bit else 8, log_scale=log_scale, device=device)
    params.requires_grad_()
    x, l = ((t).movedim(1, -1) for t in (2 * samples - 1, params))  # noqa: E741
    ours = compat.vdvae_discretized_mix_logistic_loss(x, l, low_bit, impl=impl)
    assert ours.shape == (2,)
    assert_same(ours, original_vdvae(x, l, low_bit), params)


@IMPLS
@pytest.mark.parametrize("bits", [5, 8])
def test_nvae(bits, impl, device):
    params, samples = images(2, bits, device=device)
    params.requires_grad_()
    ours = compat.nvae_disc_mix_logistic_log_prob(params, samples, 2, bits, impl=impl)
    assert ours.shape == (2, 4, 5)
    assert_same(ours, original_nvae(params, samples, bits), params)


@IMPLS
def test_the_guard_is_off_by_as_much_as_is_said(impl, device):
    """A bin that is far from the mean, at the least scale: log(sinh t / t), of each color."""
    params = torch.zeros(1, 1, 1, 10, dtype=F64, device=device)
    params[..., 2::3] = -7.0
    x = torch.full((1, 1, 1, 3), 0.5, dtype=F64, device=device)
    for bits, nats in ((8, 2.1), (5, 31.2)):
        t = math.exp(7) / (2**bits - 1)
        published = compat.vdvae_discretized_mix_logistic_loss(x, params, bits == 5, impl=impl)
        exact = discretized_mix_logistic_nll(
            params.movedim(-1, 1), x.movedim(-1, 1), 1, bits=bits, impl=impl
        )
        too_much = published.item() - exact.item() / 3
        assert too_much == pytest.approx(math.log(math.sinh(t) / t), rel=1e-9)
        assert too_much == pytest.approx(nats, abs=0.1)


def test_dtypes(device):
    """That of the decoder's output, as the originals have it."""
    params, samples = images(2, device=device)
    half = params.to(F16)
    ours = compat.nvae_disc_mix_logistic_log_prob(half, samples.float(), 2, impl=KERNELS)
    assert ours.dtype == F16
    x, l = (t.movedim(1, -1) for t in ((2 * samples - 1).float(), params.float()))  # noqa: E741
    assert compat.vdvae_discretized_mix_logistic_loss(x, l, impl=KERNELS).dtype == F32


BAD = {
    "layout": (
        "vdvae_discretized_mix_logistic_loss",
        (2, 3, 4, 5),
        (2, 20, 4, 5),
        "x [B, H, W, 3]",
    ),
    "numbers": ("vdvae_discretized_mix_logistic_loss", (2, 4, 5, 3), (2, 4, 5, 25), "10 K"),
    "pixels": ("nvae_disc_mix_logistic_log_prob", (2, 100, 4, 5), (2, 3, 4, 4), "samples [B, 3"),
    "mixtures": ("nvae_disc_mix_logistic_log_prob", (2, 20, 4, 5), (2, 3, 4, 5), "num_mix"),
}


@IMPLS
@pytest.mark.parametrize("case", BAD)
def test_bad_shapes(case, impl, device):
    name, *shapes, words = BAD[case]
    tensors = [torch.zeros(shape, device=device) for shape in shapes]
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        getattr(compat, name)(*tensors, impl=impl)


def test_bad_values(device):
    params, samples = images(2, device=device)
    if device == "cpu":
        with pytest.raises(ValueError, match=r"samples must be in \[0, 1\]"):
            compat.nvae_disc_mix_logistic_log_prob(params, 2 * samples - 1, 2)
    with pytest.raises(ValueError, match="samples is data"):
        compat.nvae_disc_mix_logistic_log_prob(params, samples.requires_grad_(), 2)
    with pytest.raises(ValueError, match="num_bits"):
        compat.nvae_disc_mix_logistic_log_prob(params, samples.detach(), 2, 9)
    x, l = samples.movedim(1, -1), params.movedim(1, -1)  # noqa: E741
    with pytest.raises(ValueError, match="x is data"):
        compat.vdvae_discretized_mix_logistic_loss(x, l)
