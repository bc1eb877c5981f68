"""The machine code that numba makes of the kernels for CPUs, and the last digits of its results.

What bench/static is to Triton's kernels: loops are packed and call nothing.
"""

import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_elbo import gaussian_nll
from fused_elbo.estimators.reference import noise
from fused_elbo.kernels import ops
from helpers.oracle import gaussian_nll_parts

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
def test_loops_are_packed_and_call_nothing():
    process = subprocess.run(
        [sys.executable, "-m", "helpers.cpu_code"], cwd=TESTS, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr


class TestSums:
    @pytest.mark.parametrize("shape", [(64, 1024), (16, 10_000), (4, 300_000)])
    def test_as_accurate_as_torchs(self, shape):
        """Terms of one sign, whose rounding errors add up most: torch's sums are pairwise."""
        recon, x = torch.rand(shape) + 1, torch.rand(shape)
        zero = torch.zeros((), dtype=F64)
        exact = sum(gaussian_nll_parts(x.double(), recon.double(), zero)).sum(-1)
        error, usual = (
            (gaussian_nll(recon, x, impl=impl) - exact).abs().max()
            for impl in ("numba", "reference")
        )
        assert error <= 1.5 * usual + 1e-7 * exact.max()


def every_number(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def between(dtype):
    """Float32 numbers half-way between neighbours of a dtype, and the nearest to those."""
    values = every_number(dtype).double()
    values = values[values.isfinite()].unique()
    beyond = 2 * values[-1] - values[-2]  # where the next number would be, were it not inf
    half_way = ((values + torch.cat((values[1:], beyond[None]))) / 2).float()
    assert half_way.double().unique().numel() == values.numel()  # exact in float32
    up, down = (torch.nextafter(half_way, torch.tensor(to)) for to in (math.inf, -math.inf))
    values = torch.cat((half_way, up, down, torch.tensor([math.inf, math.nan, 1e38])))
    return torch.cat((values, -values))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
class TestHalfPrecision:
    """numba has no type for either: bits are converted by the kernels, as torch does it."""

    def test_every_number_is_read_and_written(self, dtype):
        mu = every_number(dtype)[:, None]
        no_noise = torch.full_like(mu, -math.inf)  # z = mu + exp(-inf) eps
        z, _ = ops.rsample_kl(mu, no_noise, None, None, torch.tensor(1), False)
        assert torch.equal(z.isnan(), mu.isnan())
        assert torch.equal(z[~z.isnan()], mu[~mu.isnan()])

    def test_rounded_to_nearest_even(self, dtype):
        values = between(dtype)
        one = torch.ones(len(values), 1, dtype=dtype)  # dKL/dmu = mu
        needs = [True, False, False, False]
        (dmu,) = ops.gaussian_kl.backward(values, one, torch.zeros_like(one), None, None, needs)
        expected = values.to(dtype)[:, None]
        assert torch.equal(dmu.isnan(), expected.isnan())
        assert torch.equal(dmu[~dmu.isnan()], expected[~expected.isnan()])


# One column, Philox's four and around them; tiles of several rows, of one and of a part of one;
# more rows than 16 bits count.
SHAPES = [(3, 1), (7, 3), (2, 4), (5, 5), (300, 2), (64, 16), (2100, 256), (3, 1000), (2, 4097)]
SHAPES += [(70_000, 1)]


class TestNoise:
    """That of PyTorch's twin; test_noise.py has what holds for all backends."""

    @pytest.mark.parametrize("first_draw", [0, 3, 2**31 - 2, 2**32 - 4])
    @pytest.mark.parametrize("seed", [0, 5, 0xDEADBEEFCAFE, 2**63 - 1])
    @pytest.mark.parametrize("antithetic", [False, True])
    def test_is_the_stream(self, seed, first_draw, antithetic):
        for shape in SHAPES:
            zero, draws = torch.zeros(shape), 2
            samples = draws * (1 + antithetic)
            z, _ = ops.rsample_log_ratio(
                zero, zero, None, None, torch.tensor(seed), first_draw, samples, "total", True,
                antithetic,
            )  # fmt: skip
            expected = noise.stream(seed, draws, *shape, first_draw=first_draw)
            z = z.view(draws, -1, *shape)
            torch.testing.assert_close(z[:, 0], expected, rtol=0, atol=2e-6)
            if antithetic:
                assert torch.equal(z[:, 1], -z[:, 0])

    def test_to_1e_6_of_the_normals_that_belong_to_the_words(self):
        """The kernels have a logarithm, a sine and a cosine of their own; here are float64's."""
        rows, cols, seed = 4000, 256, 3
        zero = torch.zeros(rows, cols)
        row, group = torch.arange(rows)[:, None], torch.arange(cols // 4)
        words = noise.philox(torch.broadcast_tensors(group, row, row * 0, row * 0), (seed, 0))

        def box_muller(a, b):
            u = ((a.float() + 1) * 2.0**-32).double()
            angle = (b - (b >> 31 << 32)).double() * (math.pi * 2.0**-31)
            radius = torch.sqrt(-2 * torch.log(u))
            return radius * torch.cos(angle), radius * torch.sin(angle)

        a, b, c, d = words
        expected = torch.stack((*box_muller(a, b), *box_muller(c, d)), -1).flatten(-2)
        z = ops.gaussian_rsample(zero, zero, torch.tensor(seed), 1, False)[0]
        assert (z - expected).abs().max() < 1.2e-6
