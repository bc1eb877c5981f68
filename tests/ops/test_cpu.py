"""Behaviour on CPUs alone: code that ran on the reference goes on running on numba's kernels."""

import pytest
import torch
from torch.autograd import forward_ad

import fused_elbo as fe
from fused_elbo.estimators.reference import reference
from helpers.op_calls import op_calls, results_of
from helpers.oracle import OPS, random_values

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
F64 = torch.float64


def leaves_of(op, shape=(2, 3), dtype=F64):
    generator = torch.Generator().manual_seed(0)
    leaves = [random_values(name, shape, generator).to(dtype) for name in op.arguments]
    return [leaf.requires_grad_() for leaf in leaves]


def seeded(op, impl):
    def call(*arguments):
        torch.manual_seed(1)
        return op.call(arguments, impl)

    return call


@pytest.mark.parametrize("impl", ["auto", "numba"])
@pytest.mark.parametrize("op", OPS, ids=repr)
def test_second_derivatives(op, impl):
    assert torch.autograd.gradgradcheck(seeded(op, impl), leaves_of(op))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_second_derivatives_of_the_loss(likelihood, reduction):
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 4), (3, 4), (3,), (3, 2), (3, 2)
    recon, x, sigma, mu, logvar = (
        torch.rand(s, generator=generator, dtype=F64).requires_grad_() for s in shapes
    )

    def loss(recon, x, mu, logvar, sigma=None):
        given = {} if sigma is None else {"recon_logvar": sigma[:, None]}
        options = {"likelihood": likelihood, "reduction": reduction, "beta": 0.3}
        return fe.elbo_loss(recon, x, mu, logvar, **options, **given)

    arguments = [recon, x, mu, logvar] + ([sigma] if likelihood == "gaussian" else [])
    assert torch.autograd.gradgradcheck(loss, arguments)


def test_second_derivatives_of_weights():
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(4, 3, generator=generator, dtype=F64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: fe.importance_weights(t).bound, log_weights)


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_batched_gradients(op):
    """jacobian(vectorize=True) and is_grads_batched give what one call per gradient gives."""
    leaves = leaves_of(op)
    outputs = seeded(op, "auto")(*leaves)
    upstream = [torch.randn(3, *o.shape, dtype=o.dtype) for o in outputs]
    together = torch.autograd.grad(
        outputs, leaves, upstream, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        alone = torch.autograd.grad(outputs, leaves, [u[i] for u in upstream], retain_graph=True)
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)


class TestWhatGoesToTheReference:
    """Under "auto", silently, and with the reference's numbers."""

    def test_kernels_run_otherwise(self):
        mu = torch.randn(3, 4, requires_grad=True)
        assert type(fe.gaussian_kl(mu, mu).grad_fn).__name__ == "gaussian_klBackward"

    def test_vmap_and_friends(self):
        mu, logvar = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
        expected = reference.gaussian_kl(mu, logvar)
        torch.testing.assert_close(torch.func.vmap(fe.gaussian_kl)(mu, logvar), expected)
        jacobian = torch.func.jacfwd(lambda m: fe.gaussian_kl(m, logvar[0]))(mu[0])
        assert jacobian.shape == (3, 3, 4)
        hessian = torch.func.hessian(lambda m: fe.gaussian_kl(m, logvar[0]).sum())(mu[0])
        torch.testing.assert_close(hessian.view(12, 12), torch.eye(12))

    def test_forward_mode(self):
        mu, logvar = torch.randn(3, 4), torch.randn(3, 4)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(mu, torch.ones_like(mu))
            tangent = forward_ad.unpack_dual(fe.gaussian_kl(dual, logvar)).tangent
        torch.testing.assert_close(tangent, mu.sum(-1))

    def test_subclasses_and_tensors_without_numbers(self):
        class Sub(torch.Tensor):
            pass

        mu = torch.randn(3, 4)
        assert type(fe.gaussian_kl(mu.as_subclass(Sub), mu)) is Sub
        meta = mu.to("meta")
        assert fe.gaussian_kl(meta, meta).device.type == "meta"

    def test_views_whose_sign_is_pending(self):
        """torch.conj(x).imag: memory holds the negative."""
        z = torch.randn(3, 4, dtype=torch.complex64)
        mu = z.conj().imag
        assert mu.is_neg()
        logvar = torch.zeros(3, 4)
        expected = reference.gaussian_kl(mu.resolve_neg(), logvar)
        torch.testing.assert_close(fe.gaussian_kl(mu, logvar), expected)
        torch.testing.assert_close(fe.gaussian_kl(mu, logvar, impl="numba"), expected)


def test_results_are_on_the_cpu_whatever_the_default_is():
    calls = op_calls("cpu", 5, 6)
    expected = list(results_of(calls))
    with torch.device("meta"):
        actual = list(results_of(calls))
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
