"""The noise contract: one stream, whatever draws it, and of good quality."""

import itertools
import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from scipy import stats

import fused_elbo
from fused_elbo.estimators.reference.noise import box_muller as twin_box_muller
from fused_elbo.estimators.reference.noise import draw_seed, philox, stream
from fused_elbo.kernels import ops
from fused_elbo.kernels.triton import launch
from fused_elbo.kernels.triton import noise as kernel_noise
from helpers.accuracy import LAYOUTS, lay
from helpers.machine import KERNELS, ON_GPU

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

# The known-answer vectors for Philox4x32-10 that accompany Random123: counter, key, words.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# Around the edges of words, rows and seeds: every bit of a 64-bit seed matters.
SEEDS = [0, 1, 2**31, 2**32 - 1, 2**32, 2**62 + 12345, 2**63 - 1]


@triton.jit
def philox_kernel(counter_ptr, seed_ptr, out_ptr):
    c0 = tl.load(counter_ptr).to(tl.uint32)
    c1 = tl.load(counter_ptr + 1).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3).to(tl.uint32)
    a, b, c, d = kernel_noise.philox(c0, c1, c2, c3, tl.load(seed_ptr).to(tl.uint64, bitcast=True))
    tl.store(out_ptr, a.to(tl.int64))
    tl.store(out_ptr + 1, b.to(tl.int64))
    tl.store(out_ptr + 2, c.to(tl.int64))
    tl.store(out_ptr + 3, d.to(tl.int64))


def box_muller(a, b):
    """Float64, from the description: (a + 1) / 2**32 is u, b as a signed angle in [-pi, pi)."""
    radius = np.sqrt(-2 * np.log((a + 1.0) / 2**32))
    angle = math.pi * (b.astype(np.int64) - (b.astype(np.int64) >> 31 << 32)) / 2**31
    return radius * np.cos(angle), radius * np.sin(angle)


def set_seed(monkeypatch, seed):
    """Make the kernels draw from this seed."""

    def draw_seed(device, generator=None):
        return torch.tensor(seed, dtype=torch.int64, device=device)

    monkeypatch.setattr("fused_elbo.estimators.reference.noise.draw_seed", draw_seed)


def kernel_stream(samples, rows, cols, device, dtype=F32):
    """The noise itself: z of a standard normal."""
    zero = torch.zeros(rows, cols, dtype=dtype, device=device)
    return fused_elbo.gaussian_rsample(zero, zero, samples, impl=KERNELS)


def assert_same_noise(actual, expected):
    """Equal but for the last bits of elementary functions.

    Few ulp of normals up to 6.7 on a CPU; on a GPU lg2.approx and cos.approx have absolute
    errors of 2**-22 and 2**-20.9, where the radius may be 6.7.
    """
    atol = 1e-5 if ON_GPU else 2e-6
    torch.testing.assert_close(actual.cpu().to(F32), expected, rtol=0, atol=atol)


class TestStream:
    @pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["0", "max", "pi"])
    def test_twin_has_random123s_known_answers(self, counter, key, words):
        counter = [torch.tensor([c]) for c in counter]
        assert tuple(int(w) for w in philox(counter, key)) == words

    @pytest.mark.triton
    @pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["0", "max", "pi"])
    def test_kernel_has_random123s_known_answers(self, counter, key, words, device):
        seed = key[1] << 32 | key[0]
        seed -= (seed >> 63) << 64  # as int64
        out = torch.zeros(4, dtype=torch.int64, device=device)
        counter = torch.tensor(counter, device=device)
        philox_kernel[(1,)](counter, torch.tensor(seed, device=device), out)
        assert tuple(w & 0xFFFFFFFF for w in out.tolist()) == words

    def test_twin_is_the_description(self):
        """Counter (column // 4, row, 0, sample), key the seed's halves, words in pairs."""
        seed, (samples, rows, cols) = 2**62 + 12345, (3, 4, 9)
        expected = np.empty((samples, rows, 12))
        for k, r, g in itertools.product(range(samples), range(rows), range(3)):
            counter = [torch.tensor([c]) for c in (g, r, 0, k)]
            words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
            a, b, c, d = (np.array([int(w)]) for w in words)
            four = [*box_muller(a, b), *box_muller(c, d)]
            expected[k, r, 4 * g : 4 * g + 4] = np.concatenate(four)
        actual = stream(seed, samples, rows, cols)
        assert actual.dtype == F32
        np.testing.assert_allclose(actual, expected[..., :cols], rtol=0, atol=2e-6)

    @pytest.mark.parametrize("seed", SEEDS)
    def test_kernels_draw_the_twins_stream(self, seed, device, monkeypatch):
        set_seed(monkeypatch, seed)
        assert_same_noise(kernel_stream(2, 5, 11, device), stream(seed, 2, 5, 11))

    @pytest.mark.parametrize(
        ("rows", "cols"), [(1, 1), (600, 1), (3, 2), (130, 6), (2, 1030), (1, 4097)]
    )
    def test_kernels_draw_the_twins_stream_in_every_shape(self, rows, cols, device, monkeypatch):
        set_seed(monkeypatch, 77)
        assert_same_noise(kernel_stream(2, rows, cols, device), stream(77, 2, rows, cols))

    def test_all_of_their_range(self, device, monkeypatch):
        """131,072 words each: both tails, u near 1, and angles near -pi, 0 and pi."""
        set_seed(monkeypatch, 123)
        actual, expected = kernel_stream(32, 4, 1024, device), stream(123, 32, 4, 1024)
        assert expected.abs().max() > 4
        assert_same_noise(actual, expected)


class TestNothingElseMatters:
    """The same noise from any tiling, layout, dtype, op and number of samples."""

    @pytest.mark.parametrize("tile", [(1, 4), (1, 16), (4, 8), (64, 4), (2, 1024), (8, 128)])
    def test_tiles(self, tile, device, monkeypatch):
        set_seed(monkeypatch, 5)
        expected = kernel_stream(2, 9, 37, device)
        monkeypatch.setattr(launch, "tile_shape", lambda rows, cols, dtype: tile)
        assert torch.equal(kernel_stream(2, 9, 37, device), expected)

    @pytest.mark.parametrize("layout", [n for n in LAYOUTS if "expanded" not in n])
    def test_layouts(self, layout, device, monkeypatch):
        set_seed(monkeypatch, 5)
        mu = torch.arange(48.0, device=device).view(6, 8)
        logvar = torch.linspace(-1, 1, 48, device=device).view(6, 8)
        expected = fused_elbo.gaussian_rsample(mu, logvar, impl=KERNELS)
        args = [view(leaf) for leaf, view in (lay(t, layout) for t in (mu, logvar))]
        assert torch.equal(fused_elbo.gaussian_rsample(*args, impl=KERNELS), expected)

    @pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
    def test_dtypes(self, dtype, device, monkeypatch):
        set_seed(monkeypatch, 5)
        expected = kernel_stream(2, 5, 24, device)
        actual = kernel_stream(2, 5, 24, device, dtype)
        if dtype == F64:
            assert torch.equal(actual, expected.double())
        else:
            one = torch.finfo(dtype).eps  # an ulp: BF16 is truncated by the interpreter
            torch.testing.assert_close(actual.to(F32), expected, rtol=one, atol=1e-7)

    def test_leading_dimensions_are_rows(self, device, monkeypatch):
        set_seed(monkeypatch, 5)
        zero = torch.zeros(2, 3, 5, device=device)
        actual = fused_elbo.gaussian_rsample(zero, zero, impl=KERNELS)
        assert torch.equal(actual.view(6, 5), kernel_stream(1, 6, 5, device)[0])

    @pytest.mark.parametrize("prior", [False, True], ids=["standard", "given"])
    def test_ops(self, prior, device, monkeypatch):
        set_seed(monkeypatch, 5)
        mu, logvar = torch.randn(2, 6, 7, device=device)
        priors = torch.randn(2, 6, 7, device=device) if prior else ()
        z, _ = fused_elbo.rsample_kl(mu, logvar, *priors, impl=KERNELS)
        assert torch.equal(z, fused_elbo.gaussian_rsample(mu, logvar, impl=KERNELS))

    @pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
    def test_one_seed_is_one_z(self, dtype, device):
        """Every op that samples draws them, from any draw on; antithetic pairs share one."""
        seed = torch.tensor(2**62 + 5, device=device)
        q = [torch.randn(6, 7, device=device).to(dtype) for _ in range(2)]
        z = ops.gaussian_rsample(*q, seed, 4, False)

        def draws(first, samples, antithetic):
            options = "total", False, antithetic
            return ops.rsample_log_ratio(*q, None, None, seed, first, samples, *options)[0]

        assert torch.equal(ops.rsample_kl(*q, None, None, seed, False)[0], z[0])
        assert torch.equal(draws(0, 4, False), z)
        assert torch.equal(draws(1, 2, False), z[1:3])
        assert torch.equal(draws(1, 6, True)[::2], z[1:])

    @pytest.mark.parametrize("first_draw", [5, 2**31 - 1, 2**31 + 3, 2**32 - 2])
    def test_any_draw_may_be_the_first(self, first_draw, device):
        zero, seed = torch.zeros(3, 6, device=device), torch.tensor(7, device=device)
        options = "total", True, False
        z, _ = ops.rsample_log_ratio(zero, zero, None, None, seed, first_draw, 2, *options)
        assert_same_noise(z, stream(7, 2, 3, 6, first_draw=first_draw))

    def test_number_of_samples(self, device, monkeypatch):
        set_seed(monkeypatch, 5)
        one, three, five = (kernel_stream(k, 4, 9, device) for k in (1, 3, 5))
        assert torch.equal(three, five[:3])
        assert torch.equal(one, five[:1])

    def test_more_rows_and_columns_leave_the_others(self, device, monkeypatch):
        set_seed(monkeypatch, 5)
        assert torch.equal(
            kernel_stream(2, 3, 6, device), kernel_stream(2, 140, 21, device)[:, :3, :6]
        )

    def test_rows_past_two_to_the_32_have_counters_of_their_own(self):
        """Row 2**32 + r is not row r: the counter has 64 bits of row."""
        row = torch.tensor([1, 2**32 + 1])
        counter = [
            torch.zeros(2, dtype=torch.int64),
            row & 0xFFFFFFFF,
            row >> 32,
            torch.zeros(2).long(),
        ]
        a = philox(counter, (1, 2))[0]
        assert a[0] != a[1]


class TestBackwardAndSeeds:
    @pytest.mark.parametrize("op", ["gaussian_rsample", "rsample_kl"])
    @pytest.mark.parametrize("shape", [(3, 5), (130, 7), (2, 1025)], ids=str)
    def test_backward_draws_forwards_noise(self, op, shape, device):
        """dz/dlogvar = z / 2 at mu = 0, logvar = 0: bit for bit, since eps / 2 is exact."""
        mu = torch.zeros(shape, device=device)
        logvar = torch.zeros(shape, device=device, requires_grad=True)
        if op == "rsample_kl":
            z, _ = fused_elbo.rsample_kl(mu, logvar, impl=KERNELS)
        else:
            z = fused_elbo.gaussian_rsample(mu, logvar, impl=KERNELS)
        torch.rand(7)  # whatever is drawn in between
        (gradient,) = torch.autograd.grad(z.sum(), logvar)
        assert torch.equal(gradient, z / 2)

    def test_backward_of_several_samples(self, device):
        logvar = torch.zeros(5, 6, device=device, requires_grad=True)
        z = fused_elbo.gaussian_rsample(torch.zeros_like(logvar), logvar, 3, impl=KERNELS)
        for k in range(3):
            (gradient,) = torch.autograd.grad(z[k].sum(), logvar, retain_graph=True)
            assert torch.equal(gradient, z[k] / 2)

    @pytest.mark.parametrize("impl", [KERNELS, "reference"])
    @pytest.mark.parametrize("op", ["gaussian_rsample", "rsample_kl"])
    def test_manual_seed_and_generator_govern(self, op, impl, device):
        zero = torch.zeros(4, 6, device=device)

        def draw(**options):
            out = getattr(fused_elbo, op)(zero, zero, **options, impl=impl)
            return out[0] if op == "rsample_kl" else out

        torch.manual_seed(3)
        first, second = draw(), draw()
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        assert torch.equal(draw(), first)
        assert torch.equal(draw(), second)
        torch.manual_seed(4)
        assert not torch.equal(draw(), first)

        generator = torch.Generator(device).manual_seed(9)
        state = torch.get_rng_state()
        first, second = draw(generator=generator), draw(generator=generator)
        assert not torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), state)  # the default generator is not used
        assert torch.equal(draw(generator=generator.manual_seed(9)), first)

    def test_saved_rng_state_repeats_a_call(self, device):
        """As activation checkpointing does."""
        mu = torch.zeros(3, 4, device=device, requires_grad=True)

        def draw(mu):
            return fused_elbo.gaussian_rsample(mu, torch.zeros_like(mu), impl=KERNELS)

        z = torch.utils.checkpoint.checkpoint(lambda m: draw(m).square(), mu, use_reentrant=False)
        (gradient,) = torch.autograd.grad(z.sum(), mu)
        torch.testing.assert_close(gradient.abs(), 2 * z.detach().sqrt())

    def test_seeds_use_their_63_bits(self, device):
        seeds = torch.stack([draw_seed(device) for _ in range(64)])
        assert seeds.dtype == torch.int64
        assert seeds.device.type == device
        assert (seeds >= 0).all()
        assert seeds.unique().numel() == 64
        assert all(16 <= int((seeds >> bit & 1).sum()) <= 48 for bit in range(63))  # 4 deviations

    def test_a_seed_is_drawn_where_it_is_used(self):
        """Neither looked at nor made on the host: a meta tensor raises if it is looked at."""
        state = torch.get_rng_state()
        assert draw_seed(torch.device("meta")).device.type == "meta"
        assert torch.equal(torch.get_rng_state(), state)


# Quality, on the twin's stream (shown above to be the kernels'): N normals from fixed seeds. A
# statistic's standard error is that of independent normals; the bounds are in those, wide
# enough (about 4) for the number of statistics looked at, so that a fixed seed is no luck.
@pytest.fixture(scope="module")
def normals():
    return stream(20140414, 8, 512, 256).double()  # 2**20, as [samples, rows, columns]


class TestQuality:
    def test_moments_to_the_fourth(self, normals):
        """Var of x^k is E x^2k - (E x^k)^2: 1, 2, 15, 96."""
        n = normals.numel()
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            z = ((normals**power).mean() - mean) / math.sqrt(variance / n)
            assert abs(z) < 4, f"moment {power}: {z:.2f} standard errors"

    def test_moments_of_every_lane(self, normals):
        """The four normals of one Philox call, apart."""
        lanes = normals.reshape(-1, 4)
        n = lanes.shape[0]
        assert (lanes.mean(0).abs() < 4 / math.sqrt(n)).all()
        assert ((lanes.square().mean(0) - 1).abs() < 4 * math.sqrt(2 / n)).all()

    @pytest.mark.parametrize("lane", [0, 1, 2, 3, None])
    def test_kolmogorov_smirnov(self, normals, lane):
        values = normals.flatten() if lane is None else normals[..., lane::4].flatten()
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3

    @pytest.mark.parametrize("cut", [2.0, 3.0, 4.0, 4.5])
    def test_tail_counts(self, normals, cut):
        """Binomial counts on each side; four standard errors, or the exact test where few."""
        p = stats.norm.sf(cut)
        for side in (normals, -normals):
            count = int((side > cut).sum())
            assert stats.binomtest(count, normals.numel(), p).pvalue > 1e-4, (count, cut)

    def test_tails_reach_what_32_bits_can(self):
        """u = 2**-32 gives 6.66, as long as u is (a + 1) / 2**32."""
        assert math.sqrt(2 * 32 * math.log(2)) == pytest.approx(6.66, abs=0.01)
        word, angle = torch.tensor([0, 2**32 - 1]), torch.tensor([0, 0])
        values = twin_box_muller(word, angle)[0]
        assert values[0].item() == pytest.approx(6.6604, abs=1e-3)
        assert values[1].item() == 0

    @pytest.mark.parametrize("axis", [0, 1, 2], ids=["samples", "rows", "columns"])
    @pytest.mark.parametrize("lag", [1, 2, 3, 4])
    @pytest.mark.parametrize("power", [1, 2])
    def test_autocorrelation(self, normals, axis, lag, power):
        """Correlations of values, and of their squares (which share a radius within a call)."""
        x = normals if power == 1 else (normals.square() - 1) / math.sqrt(2)
        size = x.shape[axis] - lag
        product = x.narrow(axis, 0, size) * x.narrow(axis, lag, size)
        assert abs(product.mean()) < 4 / math.sqrt(product.numel())

    @pytest.mark.parametrize("power", [1, 2])
    def test_lanes_are_uncorrelated(self, normals, power):
        """cos and sin of one angle share a radius and yet are independent."""
        x = normals if power == 1 else (normals.square() - 1) / math.sqrt(2)
        lanes = x.reshape(-1, 4)
        correlation = lanes.T @ lanes / lanes.shape[0]
        off = correlation[~torch.eye(4, dtype=torch.bool)]
        assert (off.abs() < 4 / math.sqrt(lanes.shape[0])).all()

    def test_seeds_that_differ_in_one_bit_are_uncorrelated(self):
        n = 2**12
        base = stream(0, 1, 64, 64).double().flatten()
        for bit in range(63):
            other = stream(1 << bit, 1, 64, 64).double().flatten()
            # 63 looks: five standard errors.
            assert abs((base * other).mean()) < 5 / math.sqrt(n), bit

    def test_nothing_repeats_across_rows_and_samples(self, normals):
        """No group of four twice: 2**18 of them from 2**128 values."""
        groups = normals.reshape(-1, 4)
        assert groups.unique(dim=0).shape == groups.shape

    def test_nothing_repeats_across_calls(self, device):
        groups = torch.cat([kernel_stream(2, 8, 12, device).reshape(-1, 4) for _ in range(8)])
        assert groups.unique(dim=0).shape == groups.shape
