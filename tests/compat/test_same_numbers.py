"""Each drop-in against its original's formula: values and gradients."""

import pytest
import torch

from helpers import launches
from helpers.machine import INTERPRET, KERNELS
from helpers.originals import BF16, CASES, F32, F64, FUSED, compare, named

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("impl", ["reference", KERNELS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_number_and_gradients(case, impl, dtype, device):
    leaves = case.tensors(dtype)
    ours_leaves = case.tensors(dtype, device)
    result = case.ours(*ours_leaves, impl=impl)
    compare_on_cpu = {n: t.cpu() for n, t in named(result).items()}
    original = case.original(*leaves)
    assert type(result) is type(original)
    compare(compare_on_cpu, named(original), ours_leaves, leaves, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_choice_for_cpu_tensors(case):
    """Numba's kernels; the reference where CPU tensors would be Triton's interpreter's."""
    best = "reference" if INTERPRET else "numba"
    if best == "numba" and "none" in case.name:  # of which there is no kernel
        best = "reference"
    auto, chosen = (named(case.ours(*case.tensors(F32), impl=i)) for i in ("auto", best))
    if INTERPRET:
        assert all(torch.equal(auto[name], chosen[name]) for name in auto)
    else:  # squares and logits are left to torch, whose sums are of another order
        torch.testing.assert_close(auto, chosen, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_used(case, monkeypatch, device):
    """With impl=KERNELS a kernel runs, and with "reference" none does."""
    ran = launches.watch(monkeypatch)
    with torch.no_grad():
        case.ours(*case.tensors(F32, device), impl="reference")
        assert not ran
        case.ours(*case.tensors(F32, device), impl=KERNELS)
    assert ran


# eps, and what it is to tell from 0, are below bfloat16's resolution.
HALF = [case for case in CASES if not case.name.startswith("gaussian_nll_loss")]


@pytest.mark.parametrize("case", HALF, ids=str)
def test_half_precision_returns_what_torch_returns(case, device):
    """bfloat16 in, bfloat16 out, and close to the float64 result of the same inputs."""
    half = case.tensors(BF16)
    wide = [t.detach().double() for t in half]
    expected = named(case.original(*wide))
    actual = named(case.ours(*(t.to(device) for t in half), impl=KERNELS))
    for name, value in expected.items():
        assert actual[name].dtype == BF16
        torch.testing.assert_close(
            actual[name].double().cpu(), value, rtol=0.01, atol=0, msg=f"{name} of {case}"
        )


@pytest.mark.parametrize("case", FUSED, ids=str)
def test_autocast(case, device):
    """A decoder's bfloat16 beside float32 data: torch's losses are then in float32."""
    input, target, *var = case.tensors(F32)
    half = input.detach().to(BF16).requires_grad_()
    with torch.autocast("cpu", BF16):
        expected = case.original(half, target, *var)
    ours = [t.detach().to(device).requires_grad_() for t in (half, target, *var)]
    with torch.autocast(device, BF16):
        actual = case.ours(*ours, impl=KERNELS)
    assert actual.dtype == expected.dtype == F32
    # Torch takes the logarithm of a float variance in bfloat16.
    rtol = 1e-5 if var or "gaussian" not in case.name else 1e-3
    torch.testing.assert_close(actual.cpu(), expected, rtol=rtol, atol=0)
    (gradient,) = torch.autograd.grad(actual, ours[:1])
    (expected,) = torch.autograd.grad(expected, half)
    assert gradient.dtype == BF16
    torch.testing.assert_close(gradient.cpu(), expected, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled(case, monkeypatch):
    """A whole loss in one graph: values and gradients of the eager one."""
    # Whoever imports Pyro turns it on for all, and the compiler cannot follow.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    torch.compiler.reset()  # of one function, no more than eight
    eager, leaves = case.tensors(F64), case.tensors(F64)
    loss = torch.compile(case.ours, backend="aot_eager", fullgraph=True, dynamic=False)
    compare(loss(*leaves, impl="auto"), case.ours(*eager, impl="auto"), leaves, eager, F64)
