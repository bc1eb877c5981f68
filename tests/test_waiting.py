"""No call makes the host wait for a CUDA device: shown without one, and on one."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

import fused_elbo
from fused_elbo import compat
from fused_elbo.kernels import backends
from fused_elbo.kernels.triton.launch import recording
from helpers.op_calls import op_calls
from helpers.public_calls import public_calls
from helpers.waiting import no_waiting

NUMBERS = {"effective_beta", "effective_beta_of"}  # no tensors in, none out
NAMES = sorted(public_calls("cpu"))
# Its count of calls moves to the device at the first call, and counts there: in graphs too.
FIRST_CALL_COPIES = {"compat.AntixKBetaVAELoss"}


def test_every_public_function_has_a_call():
    ours = {n for n in fused_elbo.__all__ if not hasattr(getattr(fused_elbo, n), "_fields")}
    assert set(NAMES) == ours | {f"compat.{n}" for n in set(compat.__all__) - NUMBERS}


@pytest.fixture
def _meta_is_cuda(monkeypatch):
    """Triton's kernels serve tensors on "meta", as they do CUDA's."""
    serves_meta = dataclasses.replace(backends.TRITON, serves=lambda tensor: tensor.is_meta)
    monkeypatch.setitem(backends.BACKENDS, "triton", serves_meta)


def tensors_in(found):
    return [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]


def backward(found):
    """Through everything that is differentiable."""
    losses = [t.float().sum() for t in tensors_in(found) if t.requires_grad]
    torch.stack(losses).sum().backward()


@pytest.mark.usefixtures("_meta_is_cuda")
@pytest.mark.parametrize("name", sorted(set(NAMES) - FIRST_CALL_COPIES))
def test_no_public_call_waits(name):
    """Neither forward nor backward."""
    call = public_calls("meta", requires_grad=True)[name]
    with no_waiting():
        found = call()
        backward(found)
    assert {t.device.type for t in tensors_in(found)} == {"meta"}


# Where the dispatcher has the launchers; for "meta" it has what knows shapes alone.
LAUNCHERS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


@pytest.mark.usefixtures("_meta_is_cuda")
@pytest.mark.parametrize("op", sorted(op_calls("cpu")))
def test_no_launcher_waits(op):
    for arguments in op_calls("meta")[op]:
        with no_waiting(), recording() as launches:
            getattr(torch.ops.fused_elbo, op).default.redispatch(LAUNCHERS, *arguments)
        assert launches


WAITS = {
    "a value": lambda t: t.sum().item(),
    "a look": lambda t: bool((t > 0).all()),
    "a copy to the CPU": lambda t: t.cpu(),
    "a tensor of the host's numbers": lambda t: t + torch.tensor([1.0], device=t.device),
    "a scalar of the host's": lambda t: t + torch.as_tensor(2.0, device=t.device),
    "a copy from the CPU": lambda t: t + torch.ones(3).to(t.device),
    "where": lambda t: t[t > 0],
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_found(what):
    with pytest.raises((AssertionError, RuntimeError)), no_waiting():
        WAITS[what](torch.rand(3, device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_no_public_call_waits_on_a_gpu(name):
    """set_sync_debug_mode raises at any synchronising call, forward or backward."""
    call = public_calls("cuda", requires_grad=True)[name]

    backward(call())  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        backward(call())
    finally:
        torch.cuda.set_sync_debug_mode("default")
