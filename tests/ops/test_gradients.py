"""Gradients beyond the bar: gradcheck on the kernels, subsets, partial use, second derivatives."""

import itertools

import pytest
import torch

import fused_elbo
from fused_elbo.kernels.triton import launch
from helpers.machine import KERNELS
from helpers.oracle import OP, OPS, random_values, upstream

F32, F64 = torch.float32, torch.float64
SEED = 99


@pytest.fixture(params=["one tile", "small tiles"])
def fast(request, monkeypatch):
    """Also with tiles of 2 x 4, which put edges and column sums into small problems.

    Those take four programs where one did, so there gradcheck looks along random directions
    instead of along every axis.
    """
    if request.param == "small tiles":
        monkeypatch.setattr(launch, "tile_shape", lambda rows, cols, dtype: (2, 4))
    return request.param == "small tiles"


def leaves_of(op, shape, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        random_values(a, shape, generator).to(device, dtype).requires_grad_() for a in op.arguments
    ]


def kernel(op):
    """The op with its noise fixed."""

    def call(*args):
        torch.manual_seed(SEED)
        return op.call(args, KERNELS)

    return call


# A path gradient is not that of the values: tests/test_samples.py has it by hand.
@pytest.mark.parametrize("op", [op for op in OPS if "path" not in op.name], ids=repr)
def test_gradcheck(op, fast, device):
    """Finite differences in float64 on the kernels themselves; absent gradients included."""
    leaves = leaves_of(op, (3, 5) if fast else (2, 3), F64, device)
    assert torch.autograd.gradcheck(kernel(op), leaves, check_undefined_grad=True, fast_mode=fast)


@pytest.mark.parametrize("op", [OP["gaussian_nll_channel"], OP["rsample_kl"]], ids=repr)
def test_gradcheck_of_more_dimensions(op, device):
    assert torch.autograd.gradcheck(kernel(op), leaves_of(op, (2, 2, 1, 2), F64, device))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_of_the_loss(likelihood, reduction, fast, device):
    generator = torch.Generator().manual_seed(1)
    shapes = {"mu": (3, 2), "logvar": (3, 2), "prior_mu": (2,), "prior_logvar": (2,)}
    names = ["recon", "x", "mu", "logvar", "prior_mu", "prior_logvar"]
    names += ["recon_logvar"] * (likelihood == "gaussian")
    event = (3, 5) if fast else (3, 2)
    values = [torch.rand(shapes.get(n, event), dtype=F64, generator=generator) for n in names]
    leaves = [v.to(device).requires_grad_() for v in values]

    def loss(*args):
        return fused_elbo.elbo_loss(
            **dict(zip(names, args, strict=True)),
            likelihood=likelihood,
            reduction=reduction,
            beta=0.7,
            return_parts=True,
            impl=KERNELS,
        )

    # The first backward scales what forward wrote, v * s * g; later ones compute v * (s g).
    assert torch.autograd.gradcheck(loss, leaves, nondet_tol=1e-15, fast_mode=fast)


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_every_subset_of_arguments(op, device):
    """Each subset's gradients are those of the whole set, bit for bit; the rest get none."""
    shape = (5, 6)
    whole = None
    for wanted in itertools.product((True, False), repeat=len(op.arguments)):
        leaves = [
            leaf.requires_grad_(w)
            for leaf, w in zip(leaves_of(op, shape, F32, device), wanted, strict=True)
        ]
        outputs = kernel(op)(*leaves)
        if not any(wanted):
            assert not any(output.requires_grad for output in outputs)
            continue
        outputs = [output for output in outputs if output.requires_grad]
        generator = torch.Generator().manual_seed(2)
        weights = [upstream(o.shape, generator).to(o) for o in outputs]
        torch.autograd.backward(outputs, weights)
        gradients = [leaf.grad for leaf in leaves]
        whole = whole or gradients
        for gradient, w, expected in zip(gradients, wanted, whole, strict=True):
            assert torch.equal(gradient, expected) if w else gradient is None


@pytest.mark.parametrize("name", ["rsample_kl", "rsample_kl_prior"])
def test_only_the_sample_or_only_the_kl_is_used(name, device):
    """The unused output counts as one with a zero gradient, exactly."""
    op = OP[name]
    leaves = leaves_of(op, (5, 6), F32, device)
    weight = torch.linspace(-1, 1, 30).view(5, 6).to(device), torch.linspace(1, 2, 5).to(device)
    for used in (0, 1):
        outputs = kernel(op)(*leaves)
        alone = torch.autograd.grad(outputs[used], leaves, weight[used], allow_unused=True)
        outputs = kernel(op)(*leaves)
        other = [w if i == used else torch.zeros_like(w) for i, w in enumerate(weight)]
        both = torch.autograd.grad(outputs, leaves, other)
        for a, b in zip(alone, both, strict=True):
            torch.testing.assert_close(torch.zeros_like(b) if a is None else a, b, rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_backward_of_an_empty_batch(op, device):
    leaves = leaves_of(op, (0, 5), F32, device)
    outputs = kernel(op)(*leaves)
    gradients = torch.autograd.grad([o.sum() for o in outputs], leaves)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        assert gradient.shape == leaf.shape
        assert (gradient == 0).all()


PENALTIES = {
    # A gradient that is a constant to autograd, or unconnected to its inputs, would be dropped
    # in silence where another term keeps the whole differentiable: a wrong number, no error.
    "of the sum": lambda outputs: sum(o.sum() for o in outputs),
    "of the square": lambda outputs: sum(o.square().sum() for o in outputs),
}


def assert_no_second_derivative(first, leaves):
    gradients = torch.autograd.grad(first, leaves, create_graph=True)
    penalty = sum(g.square().sum() for g in gradients)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.autograd.grad(penalty + sum(leaf.square().sum() for leaf in leaves), leaves)


@pytest.mark.triton
@pytest.mark.parametrize("op", OPS, ids=repr)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_second_derivatives_are_refused(op, penalty, device):
    leaves = leaves_of(op, (2, 3), F32, device)
    assert_no_second_derivative(PENALTIES[penalty](kernel(op)(*leaves)), leaves)


@pytest.mark.triton
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_second_derivatives_of_the_loss_are_refused(reduction, penalty, likelihood, device):
    recon = torch.randn(3, 4, device=device, requires_grad=True)
    x, kl = torch.rand(3, 4, device=device), torch.ones(3, device=device)
    options = {"likelihood": likelihood, "reduction": reduction, "impl": KERNELS}
    loss = fused_elbo.elbo_loss(recon, x, kl=kl, **options)
    assert_no_second_derivative(PENALTIES[penalty]([loss]), [recon])


@pytest.mark.parametrize("op", [op for op in OPS if "sample" not in op.name], ids=repr)
def test_the_reference_has_second_derivatives(op):
    """As its docstrings say."""
    leaves = leaves_of(op, (2, 3), F64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *args: op.call(args, "reference"), leaves)


def test_sample_gradients_by_hand(device):
    """dz/dmu = 1, dz/dlogvar = (z - mu) / 2: the noise of backward is that of forward."""
    mu, logvar = leaves_of(OP["gaussian_rsample"], (4, 6), F64, device)
    z = fused_elbo.gaussian_rsample(mu, logvar, 3, impl=KERNELS)
    weight = upstream(z.shape).to(device)
    dmu, dlogvar = torch.autograd.grad(z, (mu, logvar), weight)
    torch.testing.assert_close(dmu, weight.sum(0), rtol=0, atol=0)
    expected = (weight * (z - mu) / 2).sum(0)
    torch.testing.assert_close(dlogvar, expected.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_arguments_that_depend_on_each_other(op, device):
    """To be differentiated again, or in batches, the gradients are those of one plain backward.

    To the rounding of noise, which is float32's.
    """
    bar = {"rtol": 1e-5, "atol": 1e-5}
    leaf, *others = leaves_of(op, (3, 5), F64, device)
    arguments = [leaf, *(other.detach() + 0.1 * leaf.sum() for other in others)]
    for output in kernel(op)(*arguments):
        weights = upstream(output.shape).to(device)
        plain = torch.autograd.grad(output, leaf, weights, retain_graph=True)
        again = torch.autograd.grad(output, leaf, weights, retain_graph=True, create_graph=True)
        torch.testing.assert_close(again, plain, **bar)
        if KERNELS == "numba":
            batch = torch.stack((weights, 2 * weights))
            batched = torch.autograd.grad(
                output, leaf, batch, retain_graph=True, is_grads_batched=True
            )
            torch.testing.assert_close(batched[0][0], plain[0], **bar)
            torch.testing.assert_close(batched[0][1], 2 * plain[0], **bar)


def test_one_tensor_for_two_arguments(device):
    mu = torch.rand(3, 5, dtype=F64, device=device, requires_grad=True)
    kl = fused_elbo.gaussian_kl(mu, mu, impl=KERNELS).sum()
    plain = torch.autograd.grad(kl, mu, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(kl, mu, create_graph=True), plain)
