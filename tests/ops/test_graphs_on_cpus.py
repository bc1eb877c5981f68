"""impl="auto" inside torch.compile on a CPU: kernels as opaque ops, or what the compiler fuses."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

import fused_elbo as fe
from fused_elbo.kernels import backends

pytestmark = [pytest.mark.numba, pytest.mark.kernels]
MU, LOGVAR = (torch.randn(3, 5, generator=torch.Generator().manual_seed(1)) for _ in range(2))
X = MU.sigmoid()
OPAQUE = {
    "rsample_kl": ("rsample_kl", lambda a, b: fe.rsample_kl(a, b)[0]),
    "gaussian_rsample": ("gaussian_rsample", lambda a, b: fe.gaussian_rsample(a, b, 2)),
    "elbo_loss": ("bernoulli_nll", lambda a, b: fe.elbo_loss(a, X, a, b)),
}
FUSED = {
    "gaussian_kl": lambda a, b: fe.gaussian_kl(a, b),
    "gaussian_log_prob": lambda a, b: fe.gaussian_log_prob(X, a, b),
    "gaussian_nll": lambda a, b: fe.gaussian_nll(a, X, b),
    "laplace_nll": lambda a, b: fe.laplace_nll(a, b),
}


def ops_of(function):
    """The kernels in the forward and the backward graph, and the compiled function."""
    found = []

    def keep(graph, _):
        targets = [str(node.target) for node in graph.graph.nodes]
        found.extend(t.split(".")[1] for t in targets if t.startswith("fused_elbo."))
        return graph.forward

    torch._dynamo.reset()
    return found, torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)


def value_and_gradients(function):
    torch.manual_seed(3)
    leaves = [MU.clone().requires_grad_(), LOGVAR.clone().requires_grad_()]
    value = function(*leaves)
    return value, *torch.autograd.grad(value.square().sum(), leaves)


@pytest.mark.parametrize("name", OPAQUE)
def test_kernels_in_the_graph(name):
    """Forward and backward; with the samples that the kernels draw outside of it."""
    op, function = OPAQUE[name]
    found, compiled = ops_of(function)
    actual = value_and_gradients(compiled)
    assert found == [op, f"{op}_backward"]
    torch.testing.assert_close(actual, value_and_gradients(function), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_what_the_compiler_fuses(name):
    """As accurate as the kernels, though a compiler writes it."""
    found, compiled = ops_of(FUSED[name])
    actual = value_and_gradients(compiled)
    assert found == []
    torch.testing.assert_close(actual, value_and_gradients(FUSED[name]), rtol=1e-5, atol=1e-6)


def test_the_seed_governs_the_noise():
    _, compiled = ops_of(OPAQUE["gaussian_rsample"][1])
    torch.manual_seed(1)
    first, second = compiled(MU, LOGVAR), compiled(MU, LOGVAR)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(compiled(MU, LOGVAR), first)


def test_transforms_inside_of_it():
    """Kernels have no vmap: the reference has."""

    def per_example(a, b):
        return torch.func.vmap(lambda a, b: fe.rsample_kl(a, b)[1], randomness="different")(a, b)

    found, compiled = ops_of(per_example)
    torch.testing.assert_close(compiled(MU, LOGVAR), fe.gaussian_kl(MU, LOGVAR, impl="reference"))
    assert found == []


def test_a_tensor_that_is_given_twice():
    found, compiled = ops_of(lambda a: fe.rsample_kl(a, a)[1])
    torch.testing.assert_close(compiled(MU), fe.gaussian_kl(MU, MU, impl="reference"))
    assert found == []


def test_an_exported_program_runs_anywhere():
    class Sampler(torch.nn.Module):
        def forward(self, mu, logvar):
            return fe.rsample_kl(mu, logvar)

    program = torch.export.export(Sampler(), (MU, LOGVAR))
    assert "fused_elbo" not in program.graph_module.code


def test_where_kernels_cannot_be_compiled(monkeypatch):
    monkeypatch.setattr(backends, "works", lambda name: False)
    found, compiled = ops_of(OPAQUE["rsample_kl"][1])
    assert compiled(MU, LOGVAR).shape == MU.shape
    assert found == []
