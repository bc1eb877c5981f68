"""No call makes the host wait for a CUDA device: shown without one, and on one."""

import functools
import importlib
import pkgutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import fused_elbo
from fused_elbo import compat
from fused_elbo.kernels import triton as triton_kernels
from fused_elbo.kernels.triton.launch import recording
from helpers.op_calls import op_calls
from helpers.public_calls import public_calls
from helpers.waiting import NoWaiting

NUMBERS = {"effective_beta", "effective_beta_of"}  # no tensors in, none out
NAMES = sorted(public_calls("cpu"))
# Its count of calls moves to the device at the first call, and counts there: in graphs too.
FIRST_CALL_COPIES = {"compat.AntixKBetaVAELoss"}


def test_every_public_function_has_a_call():
    ours = {n for n in fused_elbo.__all__ if not hasattr(getattr(fused_elbo, n), "_fields")}
    assert set(NAMES) == ours | {f"compat.{n}" for n in set(compat.__all__) - NUMBERS}


@pytest.mark.parametrize("name", NAMES)
def test_the_calls_run(name):
    tensors = [t for t in tree_leaves(public_calls("cpu", True)[name]()) if torch.is_tensor(t)]
    assert tensors
    assert any(t.requires_grad for t in tensors)


@pytest.mark.parametrize("name", sorted(set(NAMES) - FIRST_CALL_COPIES))
def test_no_public_call_waits(name):
    with FakeTensorMode():
        call = public_calls("cuda")[name]
        with NoWaiting():
            found = [t for t in tree_leaves(call()) if isinstance(t, torch.Tensor)]
        assert {t.device.type for t in found} == {"cuda"}


@functools.cache
def triton_launchers():
    """{op: its launcher}."""
    names = [
        m.name for m in pkgutil.iter_modules(triton_kernels.__path__, "fused_elbo.kernels.triton.")
    ]
    modules = [importlib.import_module(name) for name in names]
    return {op: next(getattr(m, op) for m in modules if hasattr(m, op)) for op in op_calls("cpu")}


@pytest.mark.parametrize("op", sorted(op_calls("cpu")))
def test_no_launcher_waits(op):
    with FakeTensorMode():
        for arguments in op_calls("cuda")[op]:
            with NoWaiting(), recording() as launches:
                triton_launchers()[op](*arguments)
            assert launches


WAITS = {
    "a value": lambda t: t.sum().item(),
    "a look": lambda t: bool((t > 0).all()),
    "a copy to the CPU": lambda t: t.cpu(),
    "a scalar from the host": lambda t: t + torch.tensor([1.0], device=t.device),
    "where": lambda t: t[t > 0],
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_found(what):
    with FakeTensorMode():
        tensor = torch.rand(3, device="cuda")
        with pytest.raises(AssertionError), NoWaiting():
            WAITS[what](tensor)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_no_public_call_waits_on_a_gpu(name):
    """set_sync_debug_mode raises at any synchronising call, forward or backward."""
    call = public_calls("cuda", requires_grad=True)[name]

    def everything():
        found = [t for t in tree_leaves(call()) if isinstance(t, torch.Tensor)]
        losses = [t.float().sum() for t in found if t.requires_grad]
        torch.stack(losses).sum().backward()

    everything()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
