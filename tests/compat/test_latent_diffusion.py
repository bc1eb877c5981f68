"""The posterior of latent diffusion: samples, order of calls, layouts, quirks of the original."""

import math

import pytest
import torch

from fused_elbo.compat import DiagonalGaussianDistribution, draw_gaussian_diag_samples
from helpers import launches
from helpers.machine import INTERPRET, KERNELS
from helpers.originals import BF16, F32, F64, OriginalDiagonalGaussian, assert_rounding

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (3, 6, 2, 4)
LAYOUTS = {
    "contiguous": (SHAPE, torch.contiguous_format),
    "channels last": (SHAPE, torch.channels_last),
    "video": ((2, 4, 3, 2, 5), torch.contiguous_format),
    "video, channels last": ((2, 4, 3, 2, 5), torch.channels_last_3d),
}


def parameters(shape=SHAPE, dtype=F64, layout=torch.contiguous_format, seed=0):
    """Some log variances are outside the clamp."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=F64)
    values[:, shape[1] // 2 :] *= 16
    return values.to(dtype).contiguous(memory_format=layout).requires_grad_()


def seeded(device="cpu"):
    return torch.Generator(device).manual_seed(7)


def on_device(tensor, device):
    return tensor.detach().to(device).requires_grad_()


@pytest.mark.parametrize("impl", ["reference", KERNELS])
@pytest.mark.parametrize("sample_first", [True, False], ids=["sample, kl", "kl, sample"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_numbers_in_either_order(layout, sample_first, impl, device):
    """Where a generator is given, for kernels too: samples, KL, and the gradient of both."""
    theirs = parameters(LAYOUTS[layout][0], layout=LAYOUTS[layout][1])
    ours = on_device(theirs, device)
    original = OriginalDiagonalGaussian(theirs)
    posterior = DiagonalGaussianDistribution(ours, impl=impl)
    z, kl = original.sample(generator=seeded()), original.kl()
    calls = {"z": lambda: posterior.sample(seeded()), "kl": posterior.kl}
    order = list(calls) if sample_first else list(calls)[::-1]
    found = {name: calls[name]() for name in order}
    for name, expected in (("z", z), ("kl", kl)):
        assert_rounding(found[name].detach().cpu(), expected.detach(), F64, name)
    weights = [torch.linspace(0.5, 2, t.numel(), dtype=F64).view(t.shape) for t in (z, kl)]
    (expected,) = torch.autograd.grad((z, kl), theirs, weights)
    weights = [w.to(device) for w in weights]
    (gradient,) = torch.autograd.grad((found["z"], found["kl"]), ours, weights)
    assert_rounding(gradient.cpu(), expected, F64, "gradient")
    channels = theirs.shape[1] // 2
    outside = (theirs[:, channels:] < -30) | (theirs[:, channels:] > 20)
    assert outside.any()
    assert (gradient.cpu()[:, channels:][outside] == 0).all()
    if impl == KERNELS:
        assert gradient.stride() == ours.stride()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_seed_of_the_whole_program(dtype):
    """On a CPU the original's samples; a second one differs, and a deterministic one draws too."""
    made = parameters(dtype=dtype)
    draws = []
    for posterior in (OriginalDiagonalGaussian, DiagonalGaussianDistribution):
        torch.manual_seed(5)
        q, certain = posterior(made), posterior(made, True)
        draws.append([q.sample(), q.sample(), certain.sample(), q.sample()])
    unit = torch.finfo(dtype).eps  # of the mean, the deviation and their sum
    for theirs, ours in zip(*draws, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=4 * unit, atol=4 * unit)
    assert not torch.equal(draws[1][0], draws[1][1])


def test_a_generator_for_each_example(device):
    made = on_device(parameters(), device)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    z = DiagonalGaussianDistribution(made).sample(generators)
    for i, one in enumerate(z):
        alone = DiagonalGaussianDistribution(made[i : i + 1])
        torch.testing.assert_close(one, alone.sample([torch.Generator().manual_seed(i)])[0])


def test_the_kernels_own_noise(device):
    """A kernel that is asked for, without a generator, has the same noise forward and backward."""
    made = on_device(parameters(dtype=F64), device)
    q = DiagonalGaussianDistribution(made, impl=KERNELS)
    torch.manual_seed(3)
    z = q.sample()
    eps = ((z - q.mean) / q.std).detach()
    (gradient,) = torch.autograd.grad(z.sum(), made)
    assert_rounding(gradient[:, 3:], 0.5 * q.std * eps * (q.logvar == made[:, 3:]), F64, "gradient")
    assert 0.3 < eps.std() < 2
    torch.manual_seed(3)
    torch.testing.assert_close(q.sample(), z)


def test_read_once(monkeypatch, device):
    """A sample's pass has the KL; the KL alone has no sample; backward writes one gradient."""
    made = on_device(parameters(), device)
    ran = launches.watch(monkeypatch)
    q = DiagonalGaussianDistribution(made, impl=KERNELS)
    z, kl = q.sample(), q.kl()
    assert ran == ["posterior_sample_kl"]
    torch.autograd.backward((z, kl), (torch.ones_like(z), torch.ones_like(kl)))
    assert ran[1:] == ["posterior_sample_kl_backward"]
    before = torch.random.get_rng_state()
    assert torch.equal(q.kl(), kl)
    assert torch.equal(torch.random.get_rng_state(), before)
    q.sample()
    assert ran[2:] == ["posterior_kl", "posterior_sample_kl"]


def test_sampled_without_a_gradient(device):
    """The KL may have a gradient where the sample has none, or the other way round."""
    made = on_device(parameters(), device)
    q = DiagonalGaussianDistribution(made, impl=KERNELS)
    with torch.no_grad():
        q.sample()
    assert q.kl().requires_grad
    q.sample()
    with torch.no_grad():
        assert not q.kl().requires_grad


def test_attributes_and_nll():
    made, sample = parameters(), torch.randn(3, 3, 2, 4, dtype=F64)
    q, original = DiagonalGaussianDistribution(made), OriginalDiagonalGaussian(made)
    for name in ("mean", "logvar", "std"):
        assert torch.equal(getattr(q, name), getattr(original, name)), name
    assert torch.equal(q.var, original.logvar.exp())
    assert q.mode().data_ptr() == made.data_ptr()
    assert q.parameters is made
    density = torch.distributions.Normal(original.mean, original.std).log_prob(sample)
    torch.testing.assert_close(q.nll(sample), -density.sum((1, 2, 3)))
    torch.testing.assert_close(q.nll(sample, dims=[1]), -density.sum(1))
    with pytest.raises(AttributeError):
        q.mean = sample


def test_deterministic():
    made = parameters(dtype=F64)
    q = DiagonalGaussianDistribution(made, deterministic=True)
    assert torch.equal(q.sample(), q.mean)
    for zeros in (q.std, q.var):
        assert torch.equal(zeros, torch.zeros(3, 3, 2, 4, dtype=F64))
    for nothing in (q.kl(), q.nll(q.mean), q.kl(q)):
        assert nothing.dtype == F32
        assert nothing.tolist() == [0.0]


@pytest.mark.parametrize("impl", ["reference", KERNELS])
def test_kl_to_one_that_is_no_kernels(impl):
    """To a deterministic one it is infinite, and any object with the attributes will do."""
    q = DiagonalGaussianDistribution(parameters(seed=1, dtype=F64) * 0.1, impl=impl)
    assert (q.kl(DiagonalGaussianDistribution(parameters(), True)) == math.inf).all()

    class Other:
        mean, var, logvar = torch.zeros(()), torch.ones(()), torch.zeros(())

    torch.testing.assert_close(q.kl(Other()), q.kl())


@pytest.mark.parametrize("shape", [(3,), (3, 5, 2, 2), (3, 0, 2, 2), (3, 4, 0, 2)], ids=str)
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"parameters \(3"):
        DiagonalGaussianDistribution(torch.zeros(shape))


def test_kl_of_three_dimensions_is_an_error():
    """As in the original; samples are not."""
    q = DiagonalGaussianDistribution(torch.zeros(2, 4, 5))
    assert q.sample().shape == (2, 2, 5)
    with pytest.raises(IndexError):
        q.kl()


def test_empty_batch():
    q = DiagonalGaussianDistribution(torch.zeros(0, 4, 2, 2).requires_grad_())
    z, kl = q.sample(), q.kl()
    assert z.shape == (0, 2, 2, 2)
    assert kl.shape == (0,)
    (z.sum() + kl.sum()).backward()
    assert q.parameters.grad.shape == (0, 4, 2, 2)


@pytest.mark.skipif(INTERPRET, reason="CPU tensors take the reference there")
def test_second_derivatives():
    made = parameters((1, 2, 1, 2)).detach().mul(0.1).requires_grad_()

    def values(p):
        torch.manual_seed(1)
        q = DiagonalGaussianDistribution(p)
        return q.sample(), q.kl()

    assert torch.autograd.gradgradcheck(values, made)


@pytest.mark.parametrize("impl", ["auto", "reference", KERNELS])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (5,)], ids=str)
def test_draw_gaussian_diag_samples(shape, impl):
    """VDVAE's; on a CPU at torch's own noise, but for a kernel that is named."""
    mu, logsigma = (torch.randn(shape, dtype=F64).requires_grad_() for _ in range(2))
    torch.manual_seed(2)
    eps = torch.empty_like(mu).normal_(0.0, 1.0)
    torch.manual_seed(2)
    z = draw_gaussian_diag_samples(mu, logsigma, impl=impl)
    assert z.shape == shape
    if impl != KERNELS:
        torch.testing.assert_close(z, torch.exp(logsigma) * eps + mu)
    eps = ((z - mu) / logsigma.exp()).detach()
    dmu, dlogsigma = torch.autograd.grad(z.sum(), (mu, logsigma))
    torch.testing.assert_close(dmu, torch.ones_like(mu))
    torch.testing.assert_close(dlogsigma, logsigma.exp() * eps)
