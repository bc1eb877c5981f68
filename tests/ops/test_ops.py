"""The registered ops: torch's own checks, what they write, determinism, arbitrary shapes."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fused_elbo
from fused_elbo.kernels import ops
from helpers.accuracy import LAYOUTS, check
from helpers.machine import KERNELS
from helpers.op_calls import op_calls
from helpers.oracle import OP, OPS, kl_parts, random_values, upstream

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def registered():
    schemas = (s.name for s in torch._C._jit_get_all_schemas())
    return {n.removeprefix("fused_elbo::") for n in schemas if n.startswith("fused_elbo::")}


def test_opcheck_covers_every_op(device):
    assert set(op_calls(device)) == registered()


@pytest.mark.parametrize("name", sorted(op_calls("cpu")))
def test_opcheck(name, device):
    """Schema, autograd registration, fake tensors, and tracing with symbolic shapes."""
    for arguments in op_calls(device)[name]:
        torch.library.opcheck(getattr(torch.ops.fused_elbo, name).default, arguments)


class Guarded:
    """Allocations full of NaN inside a frame of NaN, in place of torch's own.

    What a kernel leaves unwritten stays NaN, and so must the frame.
    """

    FRAME = 4096  # elements on each side: as large as a block

    def __init__(self, monkeypatch):
        self.buffers = []
        monkeypatch.setattr(torch, "empty", self.empty)
        monkeypatch.setattr(torch, "empty_like", self.empty_like)
        monkeypatch.setattr(torch.Tensor, "new_empty", self.new_empty, raising=False)

    def allocate(self, shape, dtype, device):
        shape = torch.Size(shape)
        buffer = torch.full((shape.numel() + 2 * self.FRAME,), math.nan, dtype=dtype, device=device)
        self.buffers.append((buffer, shape))
        return buffer[self.FRAME : self.FRAME + shape.numel()].view(shape)

    def empty(self, *shape, dtype=F32, device="cpu"):
        shape = shape[0] if not isinstance(shape[0], int) else shape
        return self.allocate(shape, dtype, device)

    def empty_like(self, tensor, memory_format=None):
        return self.allocate(tensor.shape, tensor.dtype, tensor.device)

    # A function, not a bound method: it becomes a method of Tensor.
    @property
    def new_empty(self):
        def method(tensor, *shape, dtype=None, device=None):
            shape = shape[0] if shape and not isinstance(shape[0], int) else shape
            dtype = dtype or tensor.dtype
            if not dtype.is_floating_point:  # torch's own use
                return torch.zeros(shape, dtype=dtype, device=device or tensor.device)
            return self.allocate(shape, dtype, device or tensor.device)

        return method

    def assert_complete(self):
        assert self.buffers
        for buffer, shape in self.buffers:
            n = shape.numel()
            inside = buffer[self.FRAME : self.FRAME + n]
            assert not inside.isnan().any(), f"not written: {shape}"
            outside = torch.cat((buffer[: self.FRAME], buffer[self.FRAME + n :]))
            assert outside.isnan().all(), f"written beside: {shape}"


POISONED = [(1, 1), (5, 3), (129, 7), (3, 64), (2, 1025), (0, 5)]


@pytest.mark.parametrize("op", OPS, ids=repr)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_every_element_is_written_and_nothing_beside(op, dtype, device, monkeypatch):
    for shape in POISONED:
        generator = torch.Generator().manual_seed(0)
        leaves = [random_values(a, shape, generator).to(device, dtype) for a in op.arguments]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with monkeypatch.context() as patch:
            guard = Guarded(patch)
            outputs = op.call(leaves, KERNELS)
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
        guard.assert_complete()
        assert not any(t.isnan().any() for t in [*outputs, *(leaf.grad for leaf in leaves)])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_writes_every_element(likelihood, device, monkeypatch):
    for shape in ((1, 1), (5, 3), (129, 7), (2, 1025)):
        leaves = [torch.rand(shape, device=device, requires_grad=True) for _ in range(3)]
        kl = torch.rand(shape[0], device=device, requires_grad=True)
        options = {"recon_logvar": leaves[2]} if likelihood == "gaussian" else {}
        with monkeypatch.context() as patch:
            guard = Guarded(patch)
            loss = fused_elbo.elbo_loss(
                *leaves[:2], kl=kl, likelihood=likelihood, **options, impl=KERNELS
            )
            loss.backward(torch.tensor(2.0, device=device), retain_graph=True)
            loss.backward()
        guard.assert_complete()
        assert not loss.isnan()


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_two_runs_are_bitwise_equal(op, device):
    """No atomics: sums are of one order."""

    def run():
        torch.manual_seed(6)
        generator = torch.Generator().manual_seed(0)
        leaves = [random_values(a, (130, 20), generator).to(device, F32) for a in op.arguments]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        outputs = op.call(leaves, KERNELS)
        weights = [upstream(o.shape, generator).to(o) for o in outputs]
        return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_two_losses_are_bitwise_equal(device):
    recon = torch.randn(300, 9, device=device, requires_grad=True)
    x, kl = torch.rand(300, 9, device=device), torch.rand(300, device=device)

    def run():
        loss = fused_elbo.elbo_loss(recon, x, kl=kl, impl=KERNELS)
        return loss, *torch.autograd.grad(loss, recon)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", OPS, ids=repr)
def test_inputs_and_upstream_gradients_are_left_alone(op, device):
    generator = torch.Generator().manual_seed(0)
    leaves = [random_values(a, (5, 8), generator).to(device, F32) for a in op.arguments]
    kept = [leaf.clone() for leaf in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    outputs = op.call(leaves, KERNELS)
    results = [o.detach().clone() for o in outputs]
    weights = [torch.ones_like(o) for o in outputs]
    torch.autograd.grad(outputs, leaves, weights)
    for now, before in zip(leaves, kept, strict=True):
        assert torch.equal(now, before)
    for now, before, weight in zip(outputs, results, weights, strict=True):
        assert torch.equal(now, before)
        assert (weight == 1).all()


def test_expanded_operands(device):
    """One row, one column or one number for all, in every pair: bit for bit those of copies."""
    seed = torch.tensor(5, device=device)
    one_of_each = [torch.randn(shape, device=device) for shape in ((1, 40), (30, 1), (1, 1))]
    for pair in itertools.product(one_of_each, repeat=2):
        mu, logvar = (t.expand(30, 40) for t in pair)
        dz, dkl = (torch.ones((), device=device).expand(shape) for shape in ((30, 40), (30,)))
        tensors = mu, logvar, logvar, mu
        found = []
        for copy in (torch.Tensor.contiguous, lambda t: t):
            q = [copy(t) for t in tensors]
            results = ops.rsample_kl.forward(*q, seed, False)
            gradients = ops.rsample_kl.backward(copy(dz), copy(dkl), *q, seed, None, [True] * 4)
            found.append([*results, *gradients])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)


def test_mixed_dtypes(device):
    """Sums are of the widest; z and gradients are of what they belong to."""
    mu, logvar = torch.randn(8, 12, device=device), torch.randn(8, 12, device=device).to(BF16)
    seed = torch.tensor(5, device=device)
    kl = ops.gaussian_kl.forward(mu, logvar, None, None)
    torch.testing.assert_close(kl, ops.gaussian_kl.forward(mu, logvar.float(), None, None))
    needs = [True, True, False, False]
    gradients = ops.gaussian_kl.backward(torch.ones_like(kl), mu, logvar, None, None, needs)
    assert [g.dtype for g in gradients] == [F32, BF16]
    wide = ops.gaussian_kl.forward(mu.double(), logvar, None, None)
    assert wide.dtype == F64
    exact = sum(kl_parts(mu.double(), logvar.double())).sum(-1)
    torch.testing.assert_close(wide, exact, rtol=1e-13, atol=1e-13)
    assert ops.rsample_kl.forward(logvar, mu, None, None, seed, False)[0].dtype == BF16


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    op=st.sampled_from(OPS),
    shape=st.one_of(
        st.tuples(st.integers(0, 20), st.integers(1, 70)),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6)),
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    ),
    dtype=st.sampled_from([F32, F64, F16, BF16]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    upstream_layout=st.sampled_from(sorted(LAYOUTS)),
    scale=st.floats(2.0**-6, 4),
    shift=st.floats(-4, 4),
)
def test_any_shape_layout_and_value(
    device, op, shape, dtype, layout, upstream_layout, scale, shift
):
    """Combinations that the tables of test_numerics leave out, held to the same bar."""
    if 0 in shape and "expanded" in layout + upstream_layout:
        layout = upstream_layout = "contiguous"  # no row to expand
    values = {
        a: (lambda t: (t * scale + shift).to(dtype).double())
        for a in op.arguments
        if a not in ("target", "logits")
    }
    check(op, shape, dtype, layout, upstream_layout, device=device, values=values)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    logvar=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=12),
    mu=st.floats(-100, 100, width=32),
)
@example(logvar=[0.0], mu=4.052429041965582e-40)
def test_kl_of_any_value_is_finite_and_not_negative(device, logvar, mu):
    logvar = torch.tensor(logvar, device=device)[None]
    kl = fused_elbo.gaussian_kl(torch.full_like(logvar, mu), logvar, impl=KERNELS)
    assert torch.isfinite(kl).all()
    assert kl.item() >= 0
    # A mu of 4e-40, which has been drawn, squares to 0 in float32.
    underflow = logvar.numel() * torch.finfo(F32).tiny
    assert kl.item() >= 0.5 * mu**2 * logvar.numel() * (1 - 1e-6) - underflow


def test_samples_of_k_are_separate_rows(device):
    """One element a row and several samples: offsets of z count samples, rows and columns."""
    mu = torch.arange(6.0, device=device).view(3, 2) * 1000
    z = fused_elbo.gaussian_rsample(mu, torch.full_like(mu, -40.0), 4, impl=KERNELS)
    torch.testing.assert_close(z, mu.expand(4, 3, 2), rtol=0, atol=1e-4)
    assert OP["gaussian_rsample_k"].samples == 3
