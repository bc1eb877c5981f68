"""The likelihoods of scvi-tools' models, and distributions of counts, against the originals."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import distributions

from fused_elbo import compat
from fused_elbo.distributions import GammaPoisson, NegativeBinomial
from helpers.machine import KERNELS

F32, F64 = torch.float32, torch.float64
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])


# scvi-tools 1.4, in words of our own.
def nb(x, mu, theta, eps=1e-8):
    log_sum = torch.log(theta + mu + eps)
    of_theta = theta * (torch.log(theta + eps) - log_sum)
    of_x = x * (torch.log(mu + eps) - log_sum)
    return of_theta + of_x + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def zinb(x, mu, theta, pi, eps=1e-8):
    theta = theta.view(1, -1) if theta.dim() == 1 else theta
    of_theta = theta * (torch.log(theta + eps) - torch.log(theta + mu + eps))
    zero = F.softplus(of_theta - pi) - F.softplus(-pi)
    return torch.where(x < eps, zero, nb(x, mu, theta, eps) - pi - F.softplus(-pi))


def mixture(x, mu_1, mu_2, theta_1, theta_2, pi_logits):
    first, second = nb(x, mu_1, theta_1), nb(x, mu_2, theta_1 if theta_2 is None else theta_2)
    both = torch.logsumexp(torch.stack((first, second - pi_logits)), 0)
    return both - F.softplus(-pi_logits)


ORIGINALS = {
    "scvi_log_nb_positive": (nb, ["mu", "theta"]),
    "scvi_log_zinb_positive": (zinb, ["mu", "theta", "pi"]),
    "scvi_log_mixture_nb": (mixture, ["mu", "mu", "theta", "theta", "pi"]),
    "scvi_log_mixture_nb shared": (mixture, ["mu", "mu", "theta", None, "pi"]),
}
ARGUMENTS = {
    "scvi_log_nb_positive": "x mu theta eps log_fn lgamma_fn",
    "scvi_log_zinb_positive": "x mu theta pi eps log_fn lgamma_fn",
    "scvi_log_mixture_nb": "x mu_1 mu_2 theta_1 theta_2 pi_logits eps log_fn lgamma_fn",
    "scvi_peakvi_reconstruction_loss": "p d f x",
}


def counts(*shape):
    x = torch.poisson(4 * torch.rand(shape)) * (torch.rand(shape) < 0.3)
    x.view(-1)[:3] = torch.tensor([30.0, 500.0, 9.0])
    return x


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_the_originals(name):
    parameters = inspect.signature(getattr(compat, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ARGUMENTS[name].split()
    assert all(p.default == 1e-8 for p in parameters if p.name == "eps")


@IMPLS
@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize(
    ("shape", "of_theta"),
    [((6, 30), (30,)), ((6, 30), (6, 30)), ((2, 6, 30), (30,)), ((2, 6, 30), (6, 30)), ((5,), ())],
    ids=str,
)
def test_as_the_original(name, shape, of_theta, impl, device):
    """x [B, G] against samples of the others [S, B, G], and a theta for each gene."""
    original, arguments = ORIGINALS[name]
    x = counts(*shape[-2:]).to(device)
    make = {
        "mu": lambda: torch.rand(shape, dtype=F64) * 5 + 0.01,
        "theta": lambda: torch.rand(of_theta, dtype=F64) * 3 + 0.1,
        "pi": lambda: torch.randn(shape, dtype=F64),
    }
    values = [None if a is None else make[a]().to(device) for a in arguments]

    def results(function, dtype, **options):
        leaves = [v if v is None else v.to(dtype).requires_grad_() for v in values]
        value = function(x.to(dtype), *leaves, **options)
        weight = torch.linspace(-1, 1, value.numel(), dtype=dtype, device=device)
        wanted = [leaf for leaf in leaves if leaf is not None]
        return value, *torch.autograd.grad((value * weight.view_as(value)).sum(), wanted)

    found = results(getattr(compat, name.split()[0]), F32, impl=impl)
    for f, e in zip(found, results(original, F64), strict=True):
        assert f.dtype == F32
        torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=2e-5)


@IMPLS
def test_a_large_dispersion_keeps_its_digits(impl, device):
    """The original is off by whole nats per cell."""
    x, mu = counts(4, 1000).to(device), torch.rand(4, 1000).to(device) + 0.1
    theta = torch.full((1000,), 1e4, device=device)
    exact = nb(x.double(), mu.double(), theta.double()).sum(1)
    found = compat.scvi_log_nb_positive(x, mu, theta, impl=impl).sum(1)
    assert (found - exact).abs().max() < 2e-3
    assert (nb(x, mu, theta).sum(1) - exact).abs().max() > 0.1


def test_called_as_scvi_calls_it(device):
    """scVI passes names and its own lgamma. A mean of zero gives a finite result."""
    x, mu = counts(3, 4).to(device), torch.zeros(3, 4, device=device)
    theta = torch.ones(4, device=device)
    options = {"mu": mu, "theta": theta, "eps": 1e-8, "lgamma_fn": torch.lgamma}
    found = compat.scvi_log_nb_positive(x, **options, impl=KERNELS)
    torch.testing.assert_close(found, nb(x, mu, theta), rtol=1e-5, atol=1e-5)


@IMPLS
def test_peakvi(impl, device):
    p, d, f = (torch.rand(s).to(device).requires_grad_() for s in ((3, 50), (3, 1), (50,)))
    x = counts(3, 50).to(device)
    for factors in ((d, f), (1, f), (1, 1)):
        found = compat.scvi_peakvi_reconstruction_loss(p, *factors, x, impl=impl)
        product = p * factors[0] * factors[1]
        expected = F.binary_cross_entropy(product, (x > 0).float(), reduction="none").sum(-1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), p)[0] for v in (found, expected)))


class TestDistributions:
    @IMPLS
    @pytest.mark.parametrize("by", ["probs", "logits"])
    def test_negative_binomial(self, by, impl, device):
        total = (torch.rand(5) * 4 + 0.1).to(device).double().requires_grad_()
        given = torch.rand(3, 5, dtype=F64).to(device).requires_grad_()
        ours = NegativeBinomial(total, **{by: given}, impl=impl)
        torchs = distributions.NegativeBinomial(total, **{by: given})
        value = counts(3, 5).to(device).double()
        pair = ours.log_prob(value), torchs.log_prob(value)
        torch.testing.assert_close(*pair)
        leaves = total, given
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), leaves) for v in pair))
        torch.testing.assert_close((ours.mean, ours.variance), (torchs.mean, torchs.variance))
        wide = ours.expand((2, 3, 5))
        assert wide.impl == impl
        assert type(wide) is NegativeBinomial
        expected = ours.log_prob(value).expand(2, 3, 5)
        torch.testing.assert_close(wide.log_prob(value), expected)
        torch.manual_seed(0)
        sample = ours.sample((7,))
        torch.manual_seed(0)
        assert torch.equal(sample, torchs.sample((7,)))

    @IMPLS
    def test_gamma_poisson(self, impl, device):
        concentration = (torch.rand(5) * 4 + 0.1).to(device).double().requires_grad_()
        rate = (torch.rand(3, 1) + 0.1).to(device).double().requires_grad_()
        ours = GammaPoisson(concentration, rate, impl=impl)
        torchs = distributions.NegativeBinomial(concentration, logits=-torch.log(rate))
        value = counts(3, 5).to(device).double()
        pair = ours.log_prob(value), torchs.log_prob(value)
        torch.testing.assert_close(*pair)
        leaves = concentration, rate
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), leaves) for v in pair))
        torch.testing.assert_close((ours.mean, ours.variance), (torchs.mean, torchs.variance))
        assert ours.batch_shape == (3, 5)
        assert ours.expand((2, 3, 5)).log_prob(value).shape == (2, 3, 5)
        assert ours.expand((2, 3, 5)).impl == impl

    def test_samples_of_gamma_poisson(self):
        """Mean and variance, in standard errors; and numbers for arguments."""
        ours = GammaPoisson(3.0, 0.5)
        x = ours.sample((20_000,))
        assert x.shape == (20_000,)
        error = (ours.variance / len(x)).sqrt()
        assert abs(x.mean() - ours.mean) < 5 * error
        assert abs(x.var() / ours.variance - 1) < 0.1
        assert ours.log_prob(torch.tensor(0.0)).item() == pytest.approx(-3 * 1.0986123, rel=1e-6)

    def test_arguments_that_are_none(self):
        with pytest.raises(ValueError, match="rate"):
            GammaPoisson(torch.ones(2), -torch.ones(2), validate_args=True)
        with pytest.raises(ValueError, match="impl"):
            NegativeBinomial(torch.ones(2), logits=torch.ones(2), impl="cuda")
        with pytest.raises(ValueError, match="support"):
            GammaPoisson(1.0, 1.0, validate_args=True).log_prob(torch.tensor(-1.0))

    def test_a_site_of_pyro(self):
        pyro = pytest.importorskip("pyro")
        from pyro.distributions.torch_distribution import TorchDistributionMixin

        class Site(GammaPoisson, TorchDistributionMixin):
            pass

        value = counts(3, 5)

        def model():
            with pyro.plate("genes", 5, dim=-1), pyro.plate("cells", 3, dim=-2):
                pyro.sample("x", Site(torch.ones(5), 2.0), obs=value)

        trace = pyro.poutine.trace(model).get_trace()
        original = pyro.distributions.GammaPoisson(torch.ones(5), torch.tensor(2.0))
        expected = original.log_prob(value).sum()
        torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-4, atol=1e-4)
