"""Without torch's private names, one at a time, kernels give the same numbers."""

import subprocess
import sys

import pytest

OWNERS = {
    "_len_torch_dispatch_stack": "torch._C",
    "_get_tracing_state": "torch._C",
    "_are_functorch_transforms_active": "torch._C",
    "is_legacy_batchedtensor": "torch._C._functorch",
    "_current_level": "torch.autograd.forward_ad",
}
# The name is back once our modules are loaded, because torch itself calls it.
TAKEN_AWAY = """
import torch
kept = {owner}.{name}
del {owner}.{name}
import fused_elbo
from fused_elbo.kernels import ops
{owner}.{name} = kept
"""
NUMBERS = """
for impl in ("auto", "numba"):
    mu, logvar = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    kl = fused_elbo.gaussian_kl(mu, logvar, impl=impl)
    assert kl.tolist() == [1.5, 1.5]
    kl.sum().backward()
    assert mu.grad.eq(1).all() and logvar.grad.eq(0).all()
z, mu, logvar = torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(4, 2)
fused_elbo.mixture_log_prob(z, mu, logvar, impl="reference")
decoder = torch.nn.Linear(2, 3)
x, q = torch.ones(4, 3), torch.zeros(4, 2)
assert fused_elbo.chunked_iwae_loss(decoder, x, q, q, 4, chunk_size=2).isfinite()
"""


def run(script):
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", OWNERS)
def test_without_a_private_name(name):
    run(TAKEN_AWAY.format(owner=OWNERS[name], name=name) + NUMBERS)


def test_without_the_bare_apply():
    """Autograd functions are recorded by torch's public ``apply``."""
    run(
        "import torch, fused_elbo\nfrom fused_elbo.kernels import torch_state\n"
        "torch_state.HAS_BARE_APPLY = False\n" + NUMBERS
    )


def test_without_the_function_of_a_context():
    """There are first derivatives, and a clear error for second ones."""
    run(
        "import torch, fused_elbo\nfrom fused_elbo.kernels import library\n"
        "library.function_of = lambda ctx: getattr(ctx, 'no such name', None)\n"
        + NUMBERS
        + """
mu = torch.ones(2, 3, requires_grad=True)
kl = fused_elbo.gaussian_kl(mu, torch.zeros(2, 3), impl="numba")
(gradient,) = torch.autograd.grad(kl.sum(), mu, create_graph=True)
try:
    gradient.sum().backward()
except RuntimeError as error:
    assert "first derivatives only" in str(error)
else:
    raise AssertionError("a second derivative")
"""
    )
