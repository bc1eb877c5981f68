"""Bad input that every function answers alike: an impl that cannot run, and an empty batch."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import fused_elbo
from fused_elbo import ELBOLoss, elbo_loss
from fused_elbo.kernels import backends
from helpers.bad_input import I64, IMPLS, t

FUNCTIONS = {
    "gaussian_log_prob": (t(3, 4), t(3, 4), t(3, 4)),
    "gaussian_kl": (t(3, 4), t(3, 4)),
    "gaussian_rsample": (t(3, 4), t(3, 4)),
    "rsample_kl": (t(3, 4), t(3, 4)),
    "gaussian_nll": (t(3, 4), t(3, 4)),
    "bernoulli_nll": (t(3, 4), t(3, 4)),
    "laplace_nll": (t(3, 4), t(3, 4)),
    "poisson_nll": (t(3, 4), t(3, 4)),
    "negative_binomial_nll": (t(3, 4), t(3, 4), t(4)),
    "multinomial_nll": (t(3, 4), t(3, 4)),
    "categorical_nll": (t(3, 4), torch.zeros(3, dtype=I64)),
    "elbo_loss": (t(3, 4), t(3, 4), t(3, 2), t(3, 2)),
    "rsample_log_ratio": (t(3, 4), t(3, 4), 2),
    "importance_weights": (t(3, 4),),
    "iwae_loss": (t(5, 3, 4), t(3, 4), t(5, 3)),
    "mixture_log_prob": (t(3, 4), t(5, 4), t(5, 4)),
    "discretized_mix_logistic_nll": (t(3, 20, 2, 2), -t(3, 3, 2, 2), 2),
    "rsample_kl_log_std": (t(3, 4), t(3, 4)),
    "balanced_kl": (t(3, 4), t(3, 4), t(3, 4), t(3, 4)),
    "kl_decomposition": (t(3, 4), t(3, 4), t(3, 4), 10),
    "elbo_tc_loss": (t(3, 4), t(3, 4), t(3, 2), t(3, 2), t(3, 2), 10),
}
OTHERS = "elbo_loss", "importance_weights", "iwae_loss"
OTHERS = *OTHERS, "mixture_log_prob", "kl_decomposition", "elbo_tc_loss"
# Whose data have no gradient.
OTHERS = *OTHERS, "discretized_mix_logistic_nll", "poisson_nll", "categorical_nll"
OTHERS = *OTHERS, "negative_binomial_nll", "multinomial_nll"
# The functions whose examples are the first dimension, so that [:0] leaves none.
OF_EXAMPLES = [n for n in FUNCTIONS if n not in OTHERS]


@pytest.mark.parametrize("name", FUNCTIONS)
class TestImpl:
    def test_unknown(self, name):
        with pytest.raises(ValueError, match="impl") as raised:
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="cuda")
        for allowed in ("'auto'", "'triton'", "'reference'", "'cuda'"):
            assert allowed in str(raised.value)

    def test_is_keyword_only(self, name):
        with pytest.raises(TypeError, match="positional"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], *[None] * 4, "reference")

    def test_triton_on_the_cpu_outside_the_interpreter(self, name, monkeypatch):
        monkeypatch.setattr(backends, "INTERPRETED", False)
        with pytest.raises(RuntimeError, match="impl='triton' needs CUDA") as raised:
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="triton")
        for word in ("cpu", "GPU", "TRITON_INTERPRET=1"):
            assert word in str(raised.value)

    def test_numba_beside_the_interpreter(self, name, monkeypatch):
        """One process cannot have both."""
        monkeypatch.setattr(backends, "INTERPRETED", True)
        with pytest.raises(RuntimeError, match=r"impl='numba' needs CPU tensors.*TRITON_INTERPRET"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl="numba")

    @pytest.mark.parametrize("impl", ["numba", "triton"])
    def test_without_the_package(self, name, impl, monkeypatch):
        lacking = dataclasses.replace(backends.BACKENDS[impl], installed=False)
        monkeypatch.setitem(backends.BACKENDS, impl, lacking)
        with pytest.raises(RuntimeError, match=f"not installed: pip install {impl}"):
            getattr(fused_elbo, name)(*FUNCTIONS[name], impl=impl)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"likelihood": "cauchy"}, ValueError, ["likelihood", "'bernoulli'", "'gaussian'"]),
        ({"reduction": "avg"}, ValueError, ["reduction", "'none'", "'mean'", "'sum'"]),
        ({"impl": "cuda"}, ValueError, ["impl", "'auto'", "'triton'", "'reference'"]),
        ({"beta": None}, TypeError, ["beta", "number"]),
    ],
    ids=["likelihood", "reduction", "impl", "beta"],
)
def test_the_module_refuses_at_construction(options, error, words):
    with pytest.raises(error) as raised:
        ELBOLoss(**options)
    assert all(word in str(raised.value) for word in words)


@IMPLS
class TestEmptyBatch:
    """An empty result, and gradients of the right shape."""

    @pytest.mark.parametrize("name", OF_EXAMPLES)
    def test_empty(self, name, impl, device):
        arguments = [
            a[:0].to(device).requires_grad_() if isinstance(a, torch.Tensor) else a
            for a in FUNCTIONS[name]
        ]
        leaves = [a for a in arguments if isinstance(a, torch.Tensor)]
        outputs = getattr(fused_elbo, name)(*arguments, impl=impl)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output in outputs:
            assert output.shape in ((0,), (0, 4), (2, 0), (2, 0, 4))
        for leaf, g in zip(
            leaves, torch.autograd.grad([o.sum() for o in outputs], leaves), strict=True
        ):
            assert g.shape == leaf.shape

    @pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
    def test_samples_of_nothing(self, reduction, impl, device):
        """As of torch's losses: a sum of 0, a mean of NaN."""
        recon, x = torch.zeros(5, 0, 4, device=device, requires_grad=True), torch.zeros(0, 4)
        x, log_ratio = x.to(device), torch.zeros(5, 0, device=device)
        options = {"reduction": reduction, "impl": impl}
        for loss in (
            fused_elbo.iwae_loss(recon, x, log_ratio, **options),
            elbo_loss(recon, x, kl=x.sum(1), **options),
        ):
            assert loss.shape == ((0,) if reduction == "none" else ())
            if reduction != "none":
                assert loss.item() == 0 or loss.isnan() == (reduction == "mean")
            assert torch.autograd.grad(loss.sum(), recon)[0].shape == recon.shape

    def test_an_empty_inner_dimension(self, impl, device):
        """[B, 0, D] has no rows, and D is not 0."""
        mu = torch.zeros(2, 0, 3, device=device, requires_grad=True)
        kl = fused_elbo.gaussian_kl(mu, mu.detach(), impl=impl)
        assert kl.shape == (2, 0)
        assert torch.autograd.grad(kl.sum(), mu)[0].shape == mu.shape
        assert fused_elbo.gaussian_rsample(mu, mu, 2, impl=impl).shape == (2, 2, 0, 3)

    def test_broadcast_gradients_of_nothing(self, impl, device):
        x, prior = torch.zeros(0, 4, device=device), torch.zeros(4, device=device).requires_grad_()
        kl = fused_elbo.gaussian_kl(x, x, prior, impl=impl)
        assert torch.equal(torch.autograd.grad(kl.sum(), prior)[0], torch.zeros_like(prior))
        sigma = torch.zeros((), device=device, requires_grad=True)
        loss = elbo_loss(
            x,
            x,
            kl=x.sum(1),
            likelihood="gaussian",
            recon_logvar=sigma,
            reduction="sum",
            impl=impl,
        )
        assert torch.autograd.grad(loss, sigma)[0].item() == 0


def test_checks_run_on_meta_and_do_not_need_triton():
    """Errors of arguments come before anything of Triton is looked at."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fused_elbo\n"
        "try: fused_elbo.gaussian_kl(torch.zeros(3, 0), torch.zeros(3, 0), impl='triton')\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mu (3, 0)" in done.stdout
