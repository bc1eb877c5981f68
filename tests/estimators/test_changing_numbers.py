"""Numbers that a schedule changes: of any kind, and compiled once for all of their values."""

import io

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fused_elbo
from fused_elbo import ELBOLoss, elbo_loss
from fused_elbo.estimators import bounds
from fused_elbo.estimators.schedule import KLSchedule
from helpers.machine import KERNELS

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
# More than the eight after which torch gives up on a function; the bounds change their form at 0,
# at 1 and close to it.
VALUES = [0.05 + 0.06 * step for step in range(11)]


def tensors(device, dtype=F32):
    """recon and its K samples, x, kl, mu and logvar, and log ratios."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"recon": (3, 5), "samples": (4, 3, 5), "x": (3, 5), "kl": (3,), "mu": (3, 2)}
    shapes |= {"logvar": (3, 2), "log_ratio": (4, 3)}
    values = {n: torch.rand(s, generator=generator, dtype=F64) for n, s in shapes.items()}
    return {n: v.to(device, dtype).requires_grad_(n != "x") for n, v in values.items()}


def estimate(name, t, impl, **options):
    """A bound's surrogate, at fixed noise."""

    def log_likelihood(z):
        return -0.5 * (z - 1).square().sum(-1)

    options |= {"log_likelihood": log_likelihood, "impl": impl}
    return bounds.estimate(name, t["mu"], t["logvar"], 4, **options).surrogate


CALLS = {
    "beta": lambda t, v, impl: elbo_loss(t["recon"], t["x"], kl=t["kl"], beta=v, impl=impl),
    "beta of each": lambda t, v, impl: elbo_loss(
        t["recon"], t["x"], kl=t["kl"], beta=v, reduction="none", impl=impl
    ),
    "recon_logvar": lambda t, v, impl: elbo_loss(
        t["recon"], t["x"], kl=t["kl"], likelihood="gaussian", recon_logvar=v, impl=impl
    ),
    "gaussian_nll": lambda t, v, impl: fused_elbo.gaussian_nll(t["recon"], t["x"], v, impl=impl),
    "iwae_loss's recon_logvar": lambda t, v, impl: fused_elbo.iwae_loss(
        t["samples"], t["x"], t["log_ratio"], likelihood="gaussian", recon_logvar=v, impl=impl
    ),
    "iwae_loss's alpha": lambda t, v, impl: fused_elbo.iwae_loss(
        t["samples"], t["x"], t["log_ratio"], alpha=v, impl=impl
    ),
    "importance_weights": lambda t, v, impl: (
        fused_elbo.importance_weights(t["log_ratio"], v, impl=impl).bound
    ),
}
ESTIMATES = {
    "mix": lambda t, v, impl: estimate("ciwae", t, impl, mix=v),
    "alpha": lambda t, v, impl: estimate("renyi", t, impl, alpha=v),
    "beta of the bound": lambda t, v, impl: estimate("elbo", t, impl, beta=v),
    "beta by Monte Carlo": lambda t, v, impl: estimate("elbo-monte-carlo", t, impl, beta=v),
    "free_bits": lambda t, v, impl: estimate("elbo", t, impl, free_bits=v),
    "free_bits in total": lambda t, v, impl: estimate(
        "elbo", t, impl, free_bits=v, free_bits_per="total"
    ),
}


def value_and_gradients(value, t):
    leaves = [leaf for leaf in t.values() if leaf.requires_grad]
    return value.detach(), torch.autograd.grad(
        value.sum(), leaves, retain_graph=True, allow_unused=True
    )


@IMPLS
@pytest.mark.parametrize("name", CALLS | ESTIMATES)
def test_compiled_once_for_all_values(name, impl, device):
    """Two graphs: one of the first value, one of all others; and eager's numbers."""
    call, t = (CALLS | ESTIMATES)[name], tensors(device)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda v: call(t, v, impl), backend=counter, fullgraph=True)
    for value in VALUES:
        result = compiled(value)
        if name in CALLS:  # of the others the noise is another
            expected = value_and_gradients(call(t, value, impl), t)
            torch.testing.assert_close(value_and_gradients(result, t), expected)
    assert counter.frame_count <= 2


@IMPLS
def test_a_schedule_of_the_module_is_compiled_once(impl, device):
    t, module = tensors(device), ELBOLoss(impl=impl)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    schedule = KLSchedule.linear(10)
    for _ in range(11):
        module.beta = schedule.step()
        loss = compiled(t["recon"], t["x"], kl=t["kl"])
        torch.testing.assert_close(loss, module(t["recon"], t["x"], kl=t["kl"]))
    # beta = 0, and every one above it.
    assert counter.frame_count <= 2


def test_inductor(device):
    """As users call it: the same two graphs, and the same numbers."""
    t = tensors(device)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(CALLS["beta"], backend=counter, fullgraph=True)
    for value in VALUES:
        expected = CALLS["beta"](t, value, "reference")
        torch.testing.assert_close(compiled(t, value, "auto"), expected)
    assert counter.frame_count <= 2


NUMBERS = [np.float64, np.float32, np.float16, np.int64]


@IMPLS
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", CALLS | ESTIMATES)
def test_numpy_numbers(name, kind, impl, device):
    """NumPy's numbers, as the elements of a schedule by np.linspace."""
    call, t = (CALLS | ESTIMATES)[name], tensors(device, F64)
    value = kind(1) if kind is np.int64 else kind(0.3)
    torch.manual_seed(1)
    actual = value_and_gradients(call(t, value, impl), t)
    torch.manual_seed(1)
    expected = value_and_gradients(call(t, value.item(), impl), t)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class TestTensorBeta:
    """0-dim, on the loss's device: scheduled without a graph anew, or learned."""

    @IMPLS
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
    @pytest.mark.parametrize("beta_dtype", [F32, F64], ids=str)
    def test_is_the_number(self, reduction, dtype, beta_dtype, impl, device):
        t = tensors(device, dtype)
        options = {"kl": t["kl"], "reduction": reduction, "return_parts": True, "impl": impl}
        beta = torch.tensor(0.625, dtype=beta_dtype, device=device)
        actual = elbo_loss(t["recon"], t["x"], beta=beta, **options)
        expected = elbo_loss(t["recon"], t["x"], beta=0.625, **options)
        torch.testing.assert_close(tuple(actual), tuple(expected))
        for a, e in zip(actual, expected, strict=True):
            a, e = value_and_gradients(a, t), value_and_gradients(e, t)
            torch.testing.assert_close(a, e)

    @IMPLS
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_its_gradient_is_the_kl(self, reduction, impl, device):
        t = tensors(device)
        beta = torch.nn.Parameter(torch.tensor(0.5, device=device))
        loss, _, kl = elbo_loss(
            t["recon"], t["x"], t["mu"], t["logvar"], beta=beta, reduction=reduction,
            return_parts=True, impl=impl,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss.sum(), beta)
        torch.testing.assert_close(gradient, kl.sum())

    @IMPLS
    def test_the_module_keeps_it(self, impl, device):
        """A Parameter among its parameters, a tensor among its buffers."""
        t = tensors(device)
        learned = ELBOLoss(beta=torch.nn.Parameter(torch.tensor(0.5)), impl=impl).to(device)
        assert [name for name, _ in learned.named_parameters()] == ["beta"]
        learned(t["recon"], t["x"], kl=t["kl"]).backward()
        torch.testing.assert_close(learned.beta.grad, t["kl"].detach().mean())
        scheduled = ELBOLoss(beta=torch.tensor(0.5), impl=impl).to(device)
        assert [name for name, _ in scheduled.named_buffers()] == ["beta"]
        for value in (0.25, 1.0):
            scheduled.beta.fill_(value)
            loss = scheduled(t["recon"], t["x"], kl=t["kl"])
            expected = elbo_loss(t["recon"], t["x"], kl=t["kl"], beta=value, impl=impl)
            torch.testing.assert_close(loss, expected)

    @IMPLS
    def test_compiled(self, impl, device):
        t, beta = tensors(device), torch.tensor(0.5, device=device, requires_grad=True)
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        call = CALLS["beta"]
        compiled = torch.compile(lambda: call(t, beta, impl), backend=counter, fullgraph=True)
        for value in VALUES:
            with torch.no_grad():
                beta.fill_(value)
            (actual,) = torch.autograd.grad(compiled(), beta)
            torch.testing.assert_close(actual, t["kl"].detach().mean())
        assert counter.frame_count == 1

    @IMPLS
    @pytest.mark.parametrize(
        ("beta", "error"),
        [
            (torch.ones(1), ValueError),
            (torch.ones(3), ValueError),
            (torch.ones((), dtype=torch.int64), TypeError),
            (torch.ones((), device="meta"), ValueError),
            (True, TypeError),
            ("1", TypeError),
            (float("nan"), ValueError),
        ],
    )
    def test_what_is_no_number(self, beta, error, impl, device):
        t = tensors(device)
        if isinstance(beta, torch.Tensor) and not beta.is_meta:
            beta = beta.to(device)
        with pytest.raises(error, match="beta"):
            elbo_loss(t["recon"], t["x"], kl=t["kl"], beta=beta, impl=impl)


def test_a_checkpoint_of_a_schedule_goes_on():
    schedule = KLSchedule.cyclical(8, 0.5, end=2.0)
    expected = [schedule.step() for _ in range(20)]
    first = KLSchedule.cyclical(8, 0.5, end=2.0)
    assert [first.step() for _ in range(11)] == expected[:11]
    state = first.state_dict()
    first.step()  # the checkpoint is of before
    second = KLSchedule.linear(3)
    second.load_state_dict(state)
    assert [second.step() for _ in range(9)] == expected[11:]
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True) == state


def test_a_checkpoint_of_something_else():
    with pytest.raises(ValueError, match="warmup, period, start, end, steps, got last_epoch"):
        KLSchedule.linear(3).load_state_dict({"last_epoch": 3})
