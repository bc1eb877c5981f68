"""DiagonalNormal against Independent(Normal(mu, sigma), 1): it stands in for it everywhere."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from sklearn.datasets import load_digits
from torch.distributions import (
    Cauchy,
    Exponential,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    MultivariateNormal,
    Normal,
    Uniform,
    biject_to,
    kl_divergence,
    transform_to,
)
from torch.optim.swa_utils import AveragedModel

from fused_elbo.distributions import DiagonalNormal
from helpers import launches
from helpers.machine import KERNELS

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
TOLERANCE = {F64: 1e-12, F32: 3e-6}
IMPLS = ["reference", KERNELS]
# Shapes of mu and of logvar, [..., D].
SHAPES = [
    ((3,), (3,)),
    ((4, 3), (4, 3)),
    ((2, 4, 5), (2, 4, 5)),
    ((4, 3), (3,)),
    ((1, 3), (2, 4, 1)),
]
SAMPLE_SHAPES = [(), (1,), (5,), (2, 3)]

pytestmark = pytest.mark.usefixtures("one_thread")


def leaves(shapes, dtype=F64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=F64) for shape in shapes]
    return [v.to(device, dtype).requires_grad_() for v in values]


def textbook(mu, logvar, **options):
    mu, logvar = torch.broadcast_tensors(mu, logvar)
    return Independent(Normal(mu, (0.5 * logvar).exp(), **options), 1, **options)


def assert_rounding(actual, expected, dtype, what=""):
    assert actual.shape == expected.shape, what
    atol = TOLERANCE[dtype] * expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.cpu(), expected, rtol=0, atol=atol, msg=lambda m: f"{what}: {m}"
    )


def gradients(output, inputs):
    """For one upstream gradient that differs from element to element."""
    upstream = torch.linspace(0.5, 2.0, output.numel(), dtype=output.dtype, device=output.device)
    return torch.autograd.grad(
        output,
        inputs,
        upstream.view(output.shape),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def compare(actual, expected, inputs, exact_inputs, dtype):
    assert_rounding(actual.detach(), expected.detach(), dtype, "value")
    pairs = zip(gradients(actual, inputs), gradients(expected, exact_inputs), strict=True)
    for i, (a, e) in enumerate(pairs):
        assert_rounding(a, e, dtype, f"gradient of argument {i}")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
class TestAgainstIndependentNormal:
    def pair(self, shapes, dtype, impl, device):
        inputs, exact = leaves(shapes, dtype, device), leaves(shapes, dtype)
        return inputs, exact, DiagonalNormal(*inputs, impl=impl), textbook(*exact)

    def test_shapes_and_moments(self, shapes, dtype, impl, device):
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        assert (q.batch_shape, q.event_shape) == (p.batch_shape, p.event_shape)
        for name in ("mean", "mode", "variance"):
            compare(getattr(q, name), getattr(p, name), inputs, exact, dtype)
        compare(q.stddev, p.base_dist.stddev, inputs, exact, dtype)
        compare(q.entropy(), p.entropy(), inputs, exact, dtype)

    @pytest.mark.parametrize("sample_shape", SAMPLE_SHAPES, ids=str)
    def test_log_prob_of_a_value(self, shapes, dtype, impl, device, sample_shape):
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        (value,) = leaves([sample_shape + p.batch_shape + p.event_shape], dtype, device, seed=1)
        same = value.detach().cpu().requires_grad_()
        compare(q.log_prob(value), p.log_prob(same), [*inputs, value], [*exact, same], dtype)

    def test_log_prob_of_a_value_that_broadcasts(self, shapes, dtype, impl, device):
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        (value,) = leaves([p.event_shape], dtype, device, seed=1)
        same = value.detach().cpu().requires_grad_()
        compare(q.log_prob(value), p.log_prob(same), [*inputs, value], [*exact, same], dtype)

    @pytest.mark.parametrize("shape", [(), (1,), (2, 1, 1, 1)], ids=str)
    def test_log_prob_of_one_number_for_all_dimensions(self, shapes, dtype, impl, device, shape):
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        (value,) = leaves([shape], dtype, device, seed=1)
        same = value.detach().cpu().requires_grad_()
        compare(q.log_prob(value), p.log_prob(same), [*inputs, value], [*exact, same], dtype)

    @pytest.mark.parametrize("sample_shape", SAMPLE_SHAPES, ids=str)
    def test_rsample_and_log_prob_of_it(self, shapes, dtype, impl, device, sample_shape):
        """Sample, density and the gradients of both agree with the noise that it drew."""
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        z = q.rsample(sample_shape)
        assert z.shape == sample_shape + p.batch_shape + p.event_shape
        assert z.dtype == dtype
        mu, std = exact[0].detach().double(), (0.5 * exact[1].detach().double()).exp()
        eps = ((z.detach().cpu().double() - mu) / std).to(dtype)
        same = exact[0] + (0.5 * exact[1]).exp() * eps
        compare(z, same, inputs, exact, dtype)
        actual, expected = q.log_prob(z), p.log_prob(same)
        assert_rounding(actual.detach(), expected.detach(), dtype, "density of the sample")
        # Jointly: of the density alone the gradient in mu is 0, and rounding has no measure.
        joint = actual + z.square().sum(-1), expected + same.square().sum(-1)
        compare(*joint, inputs, exact, dtype)

    def test_expand(self, shapes, dtype, impl, device):
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        batch_shape = (2, *p.batch_shape)
        kept = (2, *(-1 for _ in p.batch_shape))
        assert q.expand(kept).rsample().shape == (*batch_shape, *p.event_shape)
        q, p = q.expand(batch_shape), p.expand(batch_shape)
        assert type(q) is DiagonalNormal
        assert (q.batch_shape, q.event_shape) == (p.batch_shape, p.event_shape)
        value = torch.zeros(p.event_shape, dtype=dtype)
        compare(q.log_prob(value.to(device)), p.log_prob(value), inputs, exact, dtype)
        assert q.rsample((3,)).shape == p.rsample((3,)).shape
        assert q.impl == impl

    def test_kl(self, shapes, dtype, impl, device):
        """Against itself and Independent(Normal), either way round, batches broadcast."""
        inputs, exact, q, p = self.pair(shapes, dtype, impl, device)
        prior_shape = (p.event_shape, (2, *(1,) * len(p.batch_shape), *p.event_shape))
        prior, exact_prior = (
            leaves(prior_shape, dtype, device, 2),
            leaves(prior_shape, dtype, seed=2),
        )
        inputs, exact = [*inputs, *prior], [*exact, *exact_prior]
        other = textbook(*exact_prior)
        fused = [DiagonalNormal(*prior, impl=impl), textbook(*prior)]
        for r in fused:
            compare(kl_divergence(q, r), kl_divergence(p, other), inputs, exact, dtype)
            compare(kl_divergence(r, q), kl_divergence(other, p), inputs, exact, dtype)


@pytest.mark.parametrize("sample_shape", SAMPLE_SHAPES, ids=str)
def test_the_same_seed_gives_the_same_samples_on_a_cpu(sample_shape):
    mu, logvar = leaves([(4, 3), (4, 3)])
    torch.manual_seed(7)
    z = DiagonalNormal(mu, logvar).rsample(sample_shape)
    torch.manual_seed(7)
    torch.testing.assert_close(z, textbook(mu, logvar).rsample(sample_shape), rtol=1e-14, atol=0)


def in_place(tensor):
    with torch.no_grad():
        tensor.add_(0.5)


def through_data(tensor):
    tensor.data.add_(0.5)


def by_a_fused_optimizer(tensor):
    """Torch does not count its writes."""
    parameter = tensor.detach()
    parameter.grad = torch.full_like(parameter, -0.5)
    torch.optim.SGD([parameter], lr=1.0, fused=True).step()


WRITES = [in_place, through_data, by_a_fused_optimizer]


@pytest.mark.parametrize("impl", IMPLS)
class TestOwnSample:
    def own(self, impl, device, dtype=F32):
        inputs = leaves([(4, 3), (4, 3)], dtype, device)
        return inputs, DiagonalNormal(*inputs, impl=impl)

    def test_digits(self, impl, device):
        """At mu = 1e4 and sigma = 1e-3 float32 cannot hold the noise; its density needs it."""
        mu = torch.full((50, 8), 1e4, device=device)
        logvar = torch.full((50, 8), math.log(1e-6), device=device)
        q = DiagonalNormal(mu, logvar, impl=impl)
        wide = DiagonalNormal(torch.zeros_like(mu), torch.zeros_like(mu), impl=impl)
        torch.manual_seed(3)
        density = q.log_prob(q.rsample()).double().cpu()
        torch.manual_seed(3)
        eps = wide.rsample().double().cpu()
        exact = Normal(0.0, 1.0).log_prob(eps).sum(-1) - 8 * math.log(1e-3)
        torch.testing.assert_close(density, exact, rtol=2e-6, atol=0)
        z = q.rsample()
        lost = q.log_prob(z.clone()).double().cpu() - q.log_prob(z).double().cpu()
        assert lost.abs().max() > 0.1  # what re-standardising would have cost

    def test_gradient_in_the_sample_itself(self, impl, device):
        """-eps / sigma, as of any other value: log_prob is a function of three arguments."""
        inputs, q = self.own(impl, device, F64)
        z = q.rsample((2,))
        eps = (z - q.mean) / q.stddev
        (slope,) = torch.autograd.grad(q.log_prob(z).sum(), z, retain_graph=True)
        torch.testing.assert_close(slope, -eps / q.stddev, rtol=1e-10, atol=1e-10)
        # The gradients through z and beside it add up to 0 for mu and -1/2 per sample for logvar.
        dmu, dlogvar = torch.autograd.grad(q.log_prob(z).sum(), inputs)
        torch.testing.assert_close(dmu, torch.zeros_like(dmu), rtol=0, atol=1e-12)
        torch.testing.assert_close(dlogvar, torch.full_like(dmu, -1.0), rtol=1e-12, atol=0)

    def test_score(self, impl, device):
        """A sample without gradient: d log q is eps / sigma and (eps^2 - 1) / 2."""
        inputs, q = self.own(impl, device, F64)
        z = q.sample((2,))
        assert not z.requires_grad
        eps = (z - inputs[0]) / (0.5 * inputs[1]).exp()
        expected = [(eps / (0.5 * inputs[1]).exp()).sum(0), ((eps**2 - 1) / 2).sum(0)]
        for a, e in zip(torch.autograd.grad(q.log_prob(z).sum(), inputs), expected, strict=True):
            torch.testing.assert_close(a, e.detach(), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
    def test_written_to_since(self, write, impl, device):
        """A sample, a mean or a variance that changed: the density of what is there now."""
        for which in range(3):
            inputs, q = self.own(impl, device, F64)
            z = q.rsample()
            kept = q.log_prob(z).detach()
            write((z, *inputs)[which])
            with torch.no_grad():
                expected = q.log_prob(z.clone())
                torch.testing.assert_close(q.log_prob(z), expected, rtol=1e-12, atol=1e-12)
            assert not torch.allclose(expected, kept)

    def test_another_shape_since(self, impl, device):
        q = DiagonalNormal(*leaves([(3, 1, 2), (3, 1, 2)], F64, device), impl=impl)
        z = q.sample()
        z.squeeze_(1)
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("half", [F16, BF16], ids=str)
    def test_gradients_in_half_precision(self, half, impl, device):
        """A precision of 1e10 is beyond float16, its product with the upstream gradient is not."""
        mu = torch.zeros(8, 3, dtype=half, device=device, requires_grad=True)
        logvar = torch.full_like(mu, -23.0, requires_grad=True)
        q = DiagonalNormal(mu, logvar, impl=impl)
        torch.manual_seed(0)
        z = q.sample()
        upstream = torch.full((8,), 1e-3, device=device)
        actual = torch.autograd.grad(q.log_prob(z), (mu, logvar), upstream)
        torch.manual_seed(0)
        standard = torch.zeros(8, 3, device=device)
        eps = DiagonalNormal(standard, standard, impl=impl).sample()
        expected = 1e-3 * eps * math.exp(11.5), 0.5e-3 * (eps.square() - 1)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == half
            torch.testing.assert_close(a.float(), e, rtol=0.01, atol=1e-6)

    def test_other_parameters_since(self, impl, device):
        _, q = self.own(impl, device, F64)
        z = q.rsample()
        q.mu = q.mu + 5
        torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-12, atol=0)

    def test_gradients_to_be_differentiated_again_are_the_same(self, impl, device):
        """At mu = 1e4 noise read off the sample would have other values."""
        mu = torch.full((2, 3), 1e4, device=device, requires_grad=True)
        logvar = torch.full_like(mu, math.log(1e-6), requires_grad=True)
        q = DiagonalNormal(mu, logvar, impl=impl)
        density = q.log_prob(q.sample()).sum()
        plain = torch.autograd.grad(density, (mu, logvar), retain_graph=True)
        again = torch.autograd.grad(density, (mu, logvar), create_graph=True)
        torch.testing.assert_close(again, plain)

    def test_one_element_written_to(self, impl, device):
        """The rest keeps its noise: mu = 1e4 would cost it all of its digits."""
        mu = torch.full((2, 3), 1e4, device=device)
        q = DiagonalNormal(mu, torch.full_like(mu, math.log(1e-6)), impl=impl)
        z = q.rsample()
        before = q.log_prob(z)
        z[0, 1] = 1e4 + 1
        after = q.log_prob(z)
        assert torch.equal(after[1], before[1])
        assert not torch.equal(after[0], before[0])

    def test_an_earlier_sample_has_its_noise_too(self, impl, device):
        mu = torch.full((50, 8), 1e4, device=device)
        q = DiagonalNormal(mu, torch.full_like(mu, math.log(1e-6)), impl=impl)
        first = q.rsample()
        density = q.log_prob(first)
        second = q.rsample((2,))
        assert torch.equal(q.log_prob(first), density)
        assert q.log_prob(second).shape == (2, 50)
        assert not torch.equal(density, q.log_prob(first.clone()))

    def test_no_sample_and_no_noise_is_kept_alive(self, impl, device):
        mu, logvar = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
        q = DiagonalNormal(mu, logvar, impl=impl)
        z = q.sample()
        sample, draw = weakref.ref(z), weakref.ref(q._draws[z][1])
        assert draw() is not None
        del z
        gc.collect()
        assert sample() is None
        assert draw() is None

    def test_copies_start_afresh(self, impl, device):
        values = [t.detach() for t in leaves([(4, 3), (4, 3)], F32, device)]
        q = DiagonalNormal(*values, impl=impl)
        z = q.rsample()
        for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            torch.testing.assert_close(other.log_prob(z), q.log_prob(z))
            assert other.impl == impl

    def test_half_precision(self, impl, device):
        """Samples in bfloat16; the density, of the sample before rounding, in float32."""
        _, q = self.own(impl, device, BF16)
        z = q.rsample((2,))
        assert z.dtype == BF16
        density = q.log_prob(z)
        assert density.dtype == q.entropy().dtype == F32
        torch.testing.assert_close(density, q.log_prob(z.clone()), rtol=0.1, atol=0.1)
        density.sum().backward()
        assert q.mu.grad_fn is not None or q.mu.grad.dtype == BF16

    @pytest.mark.parametrize("sample_shape", [(0,), (2, 0)], ids=str)
    def test_no_samples(self, impl, device, sample_shape):
        inputs, q = self.own(impl, device)
        z = q.rsample(sample_shape)
        assert z.shape == (*sample_shape, 4, 3)
        assert q.log_prob(z).shape == (*sample_shape, 4)
        z.sum().backward()
        assert (inputs[0].grad == 0).all()

    def test_empty_batch(self, impl, device):
        q = DiagonalNormal(*leaves([(0, 3), (0, 3)], F32, device), impl=impl)
        z = q.rsample((2,))
        assert z.shape == (2, 0, 3)
        assert q.log_prob(z).shape == (2, 0)
        assert q.entropy().shape == (0,)

    def test_inference_mode(self, impl, device):
        with torch.inference_mode():
            mu, logvar = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
            q = DiagonalNormal(mu, logvar, impl=impl)
            z = q.rsample()
            z += 1
            torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()))


def test_density_of_the_own_sample_twice_differentiable():
    """The reference's, at fixed noise and with it."""
    mu, logvar = leaves([(2, 3), (2, 3)])

    def own(mu, logvar):
        torch.manual_seed(5)
        q = DiagonalNormal(mu, logvar, validate_args=False)
        z = q.rsample()
        assert z in q._draws
        return q.log_prob(z) * z.square().sum(-1)

    torch.autograd.gradcheck(own, (mu, logvar))
    torch.autograd.gradgradcheck(own, (mu, logvar))


def test_second_derivative_at_a_fixed_sample():
    """log q(z) has -1 / sigma^2 as second derivative in mu: the noise is not a constant there."""
    mu, logvar = leaves([(2, 3), (2, 3)])
    q = DiagonalNormal(mu, logvar)
    z = q.sample()
    (score,) = torch.autograd.grad(q.log_prob(z).sum(), mu, create_graph=True)
    second, mixed = torch.autograd.grad(score.sum(), [mu, logvar])
    torch.testing.assert_close(second, -1 / q.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(mixed, -(z - mu) / q.variance, rtol=1e-12, atol=0)


def test_compiled_density_of_a_sample_drawn_outside():
    q = DiagonalNormal(*leaves([(4, 3), (4, 3)]), validate_args=False)
    z = q.rsample()
    compiled = torch.compile(lambda z: q.log_prob(z), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(z), q.log_prob(z))


def test_compiled():
    """A step with a sample, its density and a KL, without a graph break."""
    mu, logvar = leaves([(4, 3), (4, 3)])

    def step(mu, logvar):
        q = DiagonalNormal(mu, logvar, validate_args=False)
        p = DiagonalNormal(torch.zeros_like(mu), torch.zeros_like(mu), validate_args=False)
        z = q.rsample()
        return (q.log_prob(z) - p.log_prob(z)).sum() + kl_divergence(q, p).sum()

    torch.manual_seed(0)
    expected = gradients(step(mu, logvar), [mu, logvar])
    torch.manual_seed(0)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for a, e in zip(gradients(compiled(mu, logvar), [mu, logvar]), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


class Prior(torch.nn.Module):
    """A learned prior: one log variance for all dimensions where ``isotropic``."""

    def __init__(self, isotropic):
        super().__init__()
        self.mu = torch.nn.Parameter(torch.zeros(3))
        self.logvar = torch.nn.Parameter(torch.zeros(1 if isotropic else 3))
        self.prior = DiagonalNormal(self.mu, self.logvar)

    def forward(self, z):
        return self.prior.log_prob(z)


@pytest.mark.parametrize("isotropic", [False, True])
class TestLearnedPrior:
    def test_a_copy_has_the_copied_parameters(self, isotropic):
        module = Prior(isotropic)
        other = copy.deepcopy(module)
        with torch.no_grad():
            other.mu.fill_(2.0)
        assert (other.prior.mu == 2).all()
        assert (module.prior.mu == 0).all()
        other(torch.zeros(3)).backward()
        torch.testing.assert_close(other.mu.grad, torch.full((3,), -2.0))
        assert module.mu.grad is None
        saved = pickle.loads(pickle.dumps(other))
        torch.testing.assert_close(saved.prior.logvar, other.prior.logvar)

    def test_averaged_model(self, isotropic):
        module = Prior(isotropic)
        averaged = AveragedModel(module)
        for value in (1.0, 2.0):
            with torch.no_grad():
                module.mu.fill_(value)
            averaged.update_parameters(module)
        z = torch.ones(3)
        expected = textbook(torch.full((3,), 1.5), torch.zeros(3)).log_prob(z)
        torch.testing.assert_close(averaged(z), expected)

    def test_to_another_dtype(self, isotropic):
        module = Prior(isotropic).double()
        assert module(torch.zeros(3, dtype=F64)).dtype == F64


def test_loc_and_scale():
    """The attributes that code for Normal reads."""
    mu, logvar = leaves([(4, 3), (3,)])
    q, p = DiagonalNormal(mu, logvar), textbook(mu, logvar).base_dist
    torch.testing.assert_close((q.loc, q.scale), (p.loc, p.scale))


def test_constraints_are_of_vectors():
    """Both parameters take any real vector: what maps to it is the identity."""
    for name, constraint in DiagonalNormal.arg_constraints.items():
        assert constraint.event_dim == 1, name
        values = torch.tensor([-100.0, 0.0, 100.0])
        for transform in (transform_to(constraint), biject_to(constraint)):
            assert torch.equal(transform(values), values)
            assert torch.equal(transform.inv(values), values)


def full(shape, dtype, seed):
    """A mean and a covariance of full rank."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*shape, shape[-1], generator=generator, dtype=F64)
    covariance = root @ root.mT + torch.eye(shape[-1], dtype=F64)
    mean = torch.randn(shape, generator=generator, dtype=F64)
    return [t.to(dtype).requires_grad_() for t in (mean, covariance)]


def kl_of_gaussians(mean, covariance, other_mean, other_covariance):
    """The KL by its formula, with inverses and determinants."""
    precision, difference = torch.linalg.inv(other_covariance), other_mean - mean
    distance = (difference.unsqueeze(-2) @ precision @ difference.unsqueeze(-1)).squeeze((-2, -1))
    trace = (precision @ covariance).diagonal(dim1=-2, dim2=-1).sum(-1)
    logarithms = torch.logdet(other_covariance) - torch.logdet(covariance)
    return 0.5 * (trace + distance + logarithms - mean.shape[-1])


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize(("batch", "other"), [((), ()), ((4,), ()), ((4,), (2, 1))], ids=str)
def test_kl_to_a_full_covariance(batch, other, dtype):
    inputs = [*leaves([(*batch, 3), (3,)], dtype), *full((*other, 3), dtype, 2)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    q, p = DiagonalNormal(*inputs[:2]), MultivariateNormal(*inputs[2:])
    diagonal = exact[0], torch.diag_embed(exact[1].exp())
    tolerance = {F64: 1e-10, F32: 2e-4}[dtype]
    pairs = [(kl_divergence(q, p), (*diagonal, *exact[2:]))]
    pairs += [(kl_divergence(p, q), (*exact[2:], *diagonal))]
    for actual, arguments in pairs:
        expected = kl_of_gaussians(*arguments)
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
        found, wanted = gradients(actual, inputs), gradients(expected, exact)
        for a, e in zip(found[:3], wanted[:3], strict=True):
            torch.testing.assert_close(a.double(), e, rtol=tolerance, atol=10 * tolerance)
        # Torch differentiates a covariance through its root: in a triangle.
        a, e = found[3].double(), wanted[3]
        torch.testing.assert_close(a + a.mT, e + e.mT, rtol=tolerance, atol=10 * tolerance)


ONES = torch.full((4, 3), 1.5)
WITH_A_KL = [
    Laplace(ONES, ONES), Gumbel(ONES, ONES), Uniform(-ONES, ONES), Exponential(ONES),
    Gamma(ONES, ONES),
]  # fmt: skip


@pytest.mark.parametrize("base", WITH_A_KL, ids=lambda base: type(base).__name__)
def test_kl_of_torchs_other_pairs(base):
    """Every pair that torch has for Independent(Normal, 1), with its gradients."""
    other, pairs = Independent(base, 1), 0
    inputs = leaves([(4, 3), (3,)], F32)
    q, p = DiagonalNormal(*inputs), textbook(*inputs)
    for turned in (slice(None), slice(None, None, -1)):
        try:
            expected = kl_divergence(*(p, other)[turned])
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                kl_divergence(*(q, other)[turned])
            continue
        pairs += 1
        actual = kl_divergence(*(q, other)[turned])
        torch.testing.assert_close(actual, expected)
        if expected.isfinite().all():
            for a, e in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
                torch.testing.assert_close(a, e)
    assert pairs > 0


def test_from_loc_and_scale():
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    q, p = DiagonalNormal(loc=mu, scale=(0.5 * logvar).exp()), DiagonalNormal(mu, logvar)
    torch.testing.assert_close((q.mu, q.logvar), (p.mu, p.logvar))
    for wrong in ({"loc": mu}, {"scale": mu}, {"mu": mu, "loc": mu, "scale": mu}, {}):
        with pytest.raises(TypeError, match="logvar"):
            DiagonalNormal(**wrong)
    with pytest.raises(TypeError, match="scale must be a"):
        DiagonalNormal(loc=mu, scale=1.0)


# Bad input.


@pytest.mark.parametrize("sigma", [0.1, 1, None])
def test_a_float_standard_deviation(sigma):
    with pytest.raises(TypeError, match=r"log variances, got .*2 \* math\.log\(sigma\)"):
        DiagonalNormal(torch.zeros(4, 3), sigma)
    with pytest.raises(TypeError, match=r"mu must be a torch\.Tensor"):
        DiagonalNormal(0.0, torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("mu", "logvar", "error"),
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), ValueError),
        (torch.zeros(()), torch.zeros(()), ValueError),
        (torch.zeros(4, 0), torch.zeros(4, 0), ValueError),
        (torch.zeros(4, 3).long(), torch.zeros(4, 3).long(), TypeError),
    ],
)
def test_bad_tensors(mu, logvar, error):
    with pytest.raises(error):
        DiagonalNormal(mu, logvar)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_arguments_are_validated(bad):
    """Values that Normal refuses: NaN, and a standard deviation of 0."""
    logvar = torch.zeros(4, 3)
    logvar[1, 1] = bad
    with pytest.raises(ValueError, match="parameter scale"):
        Normal(torch.zeros(4, 3), (0.5 * logvar).exp(), validate_args=True)
    with pytest.raises(ValueError, match="parameter logvar"):
        DiagonalNormal(torch.zeros(4, 3), logvar, validate_args=True)
    DiagonalNormal(torch.zeros(4, 3), logvar, validate_args=False)
    with pytest.raises(ValueError, match="parameter mu"):
        DiagonalNormal(torch.full((4, 3), math.nan), torch.zeros(4, 3), validate_args=True)


@pytest.mark.parametrize(
    "value", [torch.zeros(4, 2), torch.zeros(3, 3), torch.full((4, 3), math.nan)], ids=str
)
def test_values_are_validated(value):
    mu, logvar = torch.zeros(4, 3), torch.zeros(4, 3)
    for distribution in (
        DiagonalNormal(mu, logvar, validate_args=True),
        textbook(mu, logvar, validate_args=True),
        DiagonalNormal(mu, logvar, validate_args=True).expand((2, 4)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011  torch's own, whatever they say
            distribution.log_prob(value)


@pytest.mark.parametrize("value", [1.0, torch.zeros(4, 3).long()], ids=str)
def test_values_are_floating_tensors(value):
    q = DiagonalNormal(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(TypeError, match="value"):
        q.log_prob(value)


def test_kl_of_what_has_none():
    q = DiagonalNormal(torch.zeros(4, 3), torch.zeros(4, 3))
    cauchy = Independent(Cauchy(torch.zeros(4, 3), torch.ones(4, 3)), 1)
    matrix = Independent(Normal(torch.zeros(4, 3), torch.ones(4, 3)), 2)
    for other in (cauchy, matrix):
        for pair in ((q, other), (other, q)):
            with pytest.raises(NotImplementedError):
                kl_divergence(*pair)
    with pytest.raises(ValueError, match="event shapes differ"):
        kl_divergence(q, DiagonalNormal(torch.zeros(4, 1), torch.zeros(4, 1)))
    with pytest.raises(ValueError, match="event shapes"):
        kl_divergence(q, MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pytest.raises(ValueError, match="impl must be one of"):
        DiagonalNormal(torch.zeros(4, 3), torch.zeros(4, 3), impl="cuda")


def test_kernels_are_used(monkeypatch, device):
    """impl=KERNELS is that of every method, and of the KL whichever side has it."""
    ran = launches.watch(monkeypatch)
    values = torch.zeros(4, 3, device=device), torch.zeros(4, 3, device=device)
    q, p = DiagonalNormal(*values, impl=KERNELS), textbook(*values)
    plain = DiagonalNormal(*values)
    for call in (
        q.rsample,
        q.sample,
        lambda: q.log_prob(values[0]),
        lambda: kl_divergence(q, p),
        lambda: kl_divergence(p, q),
        lambda: kl_divergence(plain, q),
        lambda: kl_divergence(q, plain),
    ):
        ran.clear()
        call()
        assert ran


# Pyro: with its mixin, the losses are those of its own Normal at the same noise.


def elbo_of_digits(pyro, posterior, elbo):
    """Losses of five steps of an amortised VAE; the same weights and noise for every posterior."""
    digits = torch.tensor(load_digits().data[:64] / 16.0, dtype=F32).round()
    torch.manual_seed(1)
    encoder, decoder = torch.nn.Linear(64, 6), torch.nn.Linear(3, 64)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("batch", len(x)):
            zero = torch.zeros(len(x), 3)
            z = pyro.sample("z", posterior(zero, zero))
            pixels = pyro.distributions.Bernoulli(logits=decoder(z)).to_event(1)
            pyro.sample("x", pixels, obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("batch", len(x)):
            pyro.sample("z", posterior(*encoder(x).chunk(2, -1)))

    pyro.clear_param_store()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    return [svi.step(digits) for _ in range(5)]


@pytest.mark.parametrize(
    ("elbo", "options"),
    [
        ("Trace_ELBO", {}),
        ("Trace_ELBO", {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}),
        ("TraceMeanField_ELBO", {}),
        ("RenyiELBO", {"alpha": 0.5, "num_particles": 3}),
    ],
    ids=str,
)
def test_pyro(elbo, options):
    pyro = pytest.importorskip("pyro")

    from pyro.distributions.torch_distribution import TorchDistributionMixin

    class PyroDiagonalNormal(DiagonalNormal, TorchDistributionMixin):
        pass

    def normal(mu, logvar):
        return pyro.distributions.Normal(mu, (0.5 * logvar).exp()).to_event(1)

    objective = getattr(pyro.infer, elbo)(**options)
    expected = elbo_of_digits(pyro, normal, objective)
    actual = elbo_of_digits(pyro, PyroDiagonalNormal, objective)
    assert len(set(expected)) == 5
    assert actual == pytest.approx(expected, rel=1e-5)


def test_pyros_reparametrisation():
    """LocScaleReparam constructs anew from loc and scale; the densities are those of its Normal."""
    pyro = pytest.importorskip("pyro")

    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer.reparam import LocScaleReparam

    class PyroDiagonalNormal(DiagonalNormal, TorchDistributionMixin):
        pass

    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    found = []
    for q in (
        PyroDiagonalNormal(mu, logvar),
        pyro.distributions.Normal(mu, (0.5 * logvar).exp()).to_event(1),
    ):
        reparam = LocScaleReparam(0.3, shape_params=())

        @pyro.poutine.reparam(config={"z": reparam})
        def model(q=q):
            with pyro.plate("batch", 4):
                return pyro.sample("z", q)

        torch.manual_seed(2)
        trace = pyro.poutine.trace(model).get_trace()
        trace.compute_log_prob()
        found.append((trace.nodes["z"]["value"], trace.nodes["z_decentered"]["log_prob"]))
    torch.testing.assert_close(*found)
