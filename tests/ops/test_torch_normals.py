"""The kernel that draws torch.randn's noise: the same numbers, and the same state behind them."""

import math
import sys
import threading

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from fused_elbo import compat
from fused_elbo.distributions import DiagonalNormal
from fused_elbo.estimators.dispatch import sample_calls
from fused_elbo.kernels import library
from fused_elbo.kernels.numba import mersenne_twister

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
# Below a chunk of the kernel, at its edges and beyond, of whole groups of 16 and of others.
SIZES = [16, 17, 31, 1023, 1024, 1025, 1040, 2049, 5000]


def seeded(skipped=0, seed=7):
    """A generator that has given so many words."""
    generator = torch.Generator().manual_seed(seed)
    torch.rand(skipped, generator=generator)
    return generator


# Words left of 624: all, one, none.
@pytest.mark.parametrize("skipped", [0, 1, 623, 624, 700])
@pytest.mark.parametrize("size", SIZES)
def test_as_torch_draws_them(size, skipped):
    expected, actual = seeded(skipped), seeded(skipped)
    for _ in range(2):
        normals = mersenne_twister.randn((size,), actual)
        torch.testing.assert_close(
            normals, torch.randn(size, generator=expected), rtol=0, atol=3e-6
        )
        assert torch.equal(actual.get_state(), expected.get_state())


def test_from_the_description():
    """numpy's words and float64's functions: nearer than float32's angle of 2 pi u takes torch."""
    twister = np.random.MT19937()
    twister._legacy_seeding(7)
    radius, angle = (twister.random_raw(4096) & 0xFFFFFF).reshape(-1, 2, 8).swapaxes(0, 1) / 2**24
    radius = np.sqrt(-2 * np.log(1 - radius))
    pairs = radius * np.cos(2 * math.pi * angle), radius * np.sin(2 * math.pi * angle)
    expected = torch.from_numpy(np.stack(pairs, 1)).flatten()
    normals = mersenne_twister.randn((64, 64), seeded()).flatten().double()
    torch.testing.assert_close(normals, expected, rtol=3e-7, atol=3e-8)


def test_whatever_the_defaults_are():
    expected = mersenne_twister.randn((1040,), seeded())
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            actual = mersenne_twister.randn((1040,), seeded())
    finally:
        torch.set_default_dtype(before)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_no_thread_draws_what_another_has_drawn():
    generator, drawn = seeded(), [[] for _ in range(4)]

    def work(mine):
        for _ in range(1000):
            mine.append(mersenne_twister.randn((16,), generator)[0].item())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    running = [threading.Thread(target=work, args=(mine,)) for mine in drawn]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    sys.setswitchinterval(interval)
    together = [value for mine in drawn for value in mine]
    alone, other = [], seeded()
    for _ in together:
        alone.append(mersenne_twister.randn((16,), other)[0].item())
    assert sorted(together) == sorted(alone)


def test_a_normal_that_torch_has_kept_is_the_next_one():
    """For an odd number below 16 torch keeps one for the next call, in the generator."""
    actual, expected = seeded(), seeded()
    torch.randn(3, generator=actual), torch.randn(3, generator=expected)
    mersenne_twister.randn((1024,), actual), torch.randn(1024, generator=expected)
    assert torch.equal(torch.randn(3, generator=actual), torch.randn(3, generator=expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_who_draws_them(impl, dtype, monkeypatch):
    """Enough float32 numbers on a CPU are drawn by the kernel, and by "reference" none."""
    ran, randn = [], mersenne_twister.randn
    monkeypatch.setattr(mersenne_twister, "randn", lambda *a: ran.append(a) or randn(*a))
    library.launcher.cache_clear()
    like, shape = torch.empty(0, dtype=dtype), (2, sample_calls.FEW_NORMALS // 2)
    drawn = sample_calls.torch_normals(shape, like, seeded(), impl=impl)
    library.launcher.cache_clear()
    expected = torch.randn(shape, dtype=dtype, generator=seeded())
    torch.testing.assert_close(drawn, expected, rtol=0, atol=3e-6)
    assert len(ran) == (impl == "auto" and dtype == torch.float32)


@pytest.mark.parametrize("given", [False, True], ids=["global", "generator"])
def test_posterior_of_latent_diffusion(given):
    parameters = torch.zeros(3, 8, 16, 16)
    torch.manual_seed(7)
    generator = seeded() if given else None
    z = compat.DiagonalGaussianDistribution(parameters).sample(generator)
    torch.manual_seed(7)
    torch.testing.assert_close(z, torch.randn(3, 4, 16, 16), rtol=0, atol=3e-6)


def test_normal_and_samples_of_vdvae():
    mu, log_std = torch.zeros(32, 40), torch.zeros(32, 40)
    draws = (
        Independent(Normal(mu, log_std.exp()), 1).rsample,
        DiagonalNormal(mu, 2 * log_std).rsample,
        lambda: compat.draw_gaussian_diag_samples(mu, log_std),
    )
    expected, *others = (torch.manual_seed(3) and draw() for draw in draws)
    for z in others:
        torch.testing.assert_close(z, expected, rtol=0, atol=3e-6)


def another_state(monkeypatch):
    monkeypatch.setattr(mersenne_twister, "STATE_BYTES", 5064)


def another_place(monkeypatch):
    monkeypatch.setattr(mersenne_twister, "LEFT", 0)


def other_numbers(monkeypatch):
    draw = mersenne_twister.draw_normals
    monkeypatch.setattr(mersenne_twister, "draw_normals", lambda s, n: (draw(s, n), n.neg_()))


@pytest.mark.parametrize("change", [another_state, another_place, other_numbers])
def test_where_torch_draws_otherwise_torch_draws(monkeypatch, change):
    change(monkeypatch)
    mersenne_twister.draws_as_torch.cache_clear()
    drawn = mersenne_twister.randn((1040,), seeded())
    monkeypatch.undo()
    mersenne_twister.draws_as_torch.cache_clear()
    assert torch.equal(drawn, torch.randn(1040, generator=seeded()))
    assert mersenne_twister.draws_as_torch()
