"""The behaviour of each original beside its formula."""

import copy
import functools
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributions import Normal

import fused_elbo
from fused_elbo import compat
from helpers.machine import KERNELS
from helpers.originals import (
    F16,
    F32,
    F64,
    IMAGE,
    LATENTS,
    LIBRARIES,
    PIXELS,
    Case,
    antixk_terms,
    assert_rounding,
    named,
    original_pythae,
    original_scvi_standard,
    parameters,
)

IMPLS = pytest.mark.parametrize("impl", ["reference", KERNELS])
pytestmark = pytest.mark.usefixtures("one_thread")


def test_pytorch_examples_flattens_the_data_and_nothing_else():
    mu = logvar = torch.zeros(4, 2)
    recon_x, x = torch.full((4, 6), 0.5), torch.ones(4, 1, 2, 3)
    loss = compat.pytorch_examples_vae_loss(recon_x, x, mu, logvar)
    assert loss.item() == pytest.approx(24 * math.log(2))
    with pytest.raises(ValueError, match="size"):  # 4 rows of 6 are 8 rows of 3
        compat.pytorch_examples_vae_loss(torch.full((4, 3), 0.5), x, mu, logvar)


def test_pythae_reshapes_both_images_and_ignores_z():
    recon_x, x = torch.rand(5, 24), torch.rand(5, *IMAGE)
    mu, log_var = torch.randn(5, 2), torch.randn(5, 2)
    flat = compat.pythae_vae_loss(recon_x, x.flatten(1), mu, log_var, None)
    shaped = compat.pythae_vae_loss(recon_x, x, mu, log_var, "anything")
    assert all(torch.equal(a, b) for a, b in zip(flat, shaped, strict=True))


# (loss, recon, kld) of pythae 0.1.2's own IWAE.loss_function, in float64, for ramps().
PYTHAE_IWAE = {
    "mse": [-1.1127032697506927, 0.06687370600414079, -1.1630117404252325],
    "bce": [0.9300666235497813, 2.132670349880162, -1.1630117404252325],
}


def ramps():
    """recon_x [2, 3, 4], x [2, 1, 2, 2], mu, log_var and z [2, 3, 2]."""
    recon_x = torch.linspace(0.1, 0.9, 24, dtype=F64).view(2, 3, 4)
    x = torch.linspace(0.0, 1.0, 8, dtype=F64).view(2, 1, 2, 2)
    latents = torch.linspace(-1.0, 1.0, 36, dtype=F64).sin().view(3, 2, 3, 2)
    return recon_x, x, *latents.unbind()


@IMPLS
@pytest.mark.parametrize("mode", PYTHAE_IWAE)
def test_pythae_iwae_is_the_package_s(mode, impl, device):
    tensors = [t.to(device) for t in ramps()]
    parts = compat.pythae_iwae_loss(*tensors, reconstruction_loss=mode, impl=impl)
    assert [part.item() for part in parts] == pytest.approx(PYTHAE_IWAE[mode], rel=1e-13)


@IMPLS
def test_pythae_iwae_has_the_gradient_of_the_bound_and_another_value(impl, device):
    recon_x, x, mu, log_var, z = (t.to(device).requires_grad_() for t in ramps())
    loss, _, _ = compat.pythae_iwae_loss(recon_x, x, mu, log_var, z, impl=impl)
    log_ratio = Normal(0.0, 1.0).log_prob(z) - Normal(mu, (0.5 * log_var).exp()).log_prob(z)
    bound = fused_elbo.iwae_loss(
        recon_x.transpose(0, 1), x.flatten(1), log_ratio.sum(-1).T, likelihood="gaussian", impl=impl
    )
    leaves = recon_x, x, mu, log_var, z
    for a, e in zip(
        torch.autograd.grad(loss, leaves), torch.autograd.grad(bound, leaves), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-8)
    constant = 2 * math.log(2 * math.pi)  # of 4 pixels
    assert loss.item() + constant < bound.item() - 0.005  # it claims more than the bound


def test_a_method_is_replaced_by_one_assignment():
    class Model(torch.nn.Module):
        def forward(self, recon_x, x, mu, log_var, z):
            return self.loss_function(recon_x, x, mu, log_var, z)

    model, half = Model(), torch.full((2, 3), 0.5)
    model.loss_function = functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce")
    loss, recon, kld = model(half, half, torch.ones(2, 1), torch.zeros(2, 1), None)
    assert loss.item() == pytest.approx(recon.item() + kld.item())
    assert recon.item() == pytest.approx(3 * math.log(2))


def original_capacity_loss(recons, input, mu, log_var, calls, options, M_N):
    """Burgess et al.: the capacity, a float32 tensor of one element, takes the loss with it."""
    recon, kl = antixk_terms(recons, input, mu, log_var)
    most = torch.Tensor([options["max_capacity"]])
    capacity = torch.minimum(most / options["Capacity_max_iter"] * calls, most)
    return recon + options["gamma"] * M_N * (kl - capacity).abs()


@pytest.mark.parametrize("impl", ["reference", KERNELS])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_antixk_capacity(impl, dtype, device):
    """Below, above and at the end of its rise; the loss is [1] and float32, as the original's."""
    options = {"gamma": 3.0, "max_capacity": 7, "Capacity_max_iter": 11}
    loss_function = compat.AntixKBetaVAELoss(**options, impl=impl)
    signs = set()  # of the KL above the capacity: the run must see both
    for calls in range(1, 14):
        leaves, ours = (LIBRARIES[5].tensors(dtype, d, seed=calls) for d in ("cpu", device))
        result = loss_function(*ours, M_N=0.3, optimizer_idx=0)
        assert loss_function.num_iter == calls
        recon, kl = antixk_terms(*leaves)
        expected = original_capacity_loss(*leaves, calls, options, 0.3)
        assert result["loss"].shape == (1,)
        assert result["loss"].dtype == F32
        signs.add((kl > loss_function.capacity()).item())
        torch.testing.assert_close(result["loss"].cpu(), expected, rtol=2e-6, atol=0)
        assert_rounding(result["KLD"].detach().cpu(), kl.detach(), dtype, "KLD")
        assert_rounding(result["Reconstruction_Loss"].detach().cpu(), recon.detach(), dtype, "R")
        gradients = torch.autograd.grad(result["loss"], ours)
        for a, e in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
            assert_rounding(a.cpu(), e, F32 if dtype == F32 else F64, calls)
    assert signs == {True, False}
    assert loss_function.capacity() == 7.0


def test_antixk_counts_without_compiling_anew():
    counter = CompileCounterWithBackend("aot_eager")
    for loss_type in ("H", "B"):
        torch.compiler.reset()
        loss_function = compat.AntixKBetaVAELoss(
            max_capacity=7, Capacity_max_iter=11, loss_type=loss_type
        )
        compiled = torch.compile(
            lambda *t, f=loss_function: f(*t, M_N=0.3)["loss"], backend=counter, fullgraph=True
        )
        loss_function.num_iter = 3  # a run that goes on
        again = copy.copy(loss_function)
        counter.frame_count = 0
        for calls in range(4, 16):
            leaves = LIBRARIES[5].tensors(F64, seed=calls)
            torch.testing.assert_close(compiled(*leaves), again(*leaves, M_N=0.3)["loss"])
            assert loss_function.num_iter == again.num_iter == calls
        assert counter.frame_count == 1


def test_antixk_count_is_its_own():
    with torch.inference_mode():
        first = compat.AntixKBetaVAELoss()
    second, count = copy.copy(first), first.num_iter
    first(*LIBRARIES[5].tensors(F32), M_N=1.0)
    assert (count, first.num_iter, second.num_iter) == (0, 1, 0)


@IMPLS
@pytest.mark.parametrize("mode", ["mse", "bce"])
def test_gradients_of_pythae_in_float16(mode, impl, device):
    """With a loss scale, 1 / p up to 1000, and 12,288 pixels: none of their products is there."""
    scale, shape = 2.0**10, (64, 3 * 64 * 64)
    generator = torch.Generator().manual_seed(0)
    recon, x = (torch.rand(shape, generator=generator).to(F16) for _ in range(2))
    if mode == "bce":
        recon = recon.clamp(1e-3, 0.999)
    zero = torch.zeros(64, 2, dtype=F16)
    leaf = recon.clone().to(device).requires_grad_()
    images = leaf, x.to(device), zero.to(device), zero.to(device)
    loss, *_ = compat.pythae_vae_loss(*images, reconstruction_loss=mode, impl=impl)
    assert loss.dtype == F16
    (loss.float() * scale).backward()
    exact, wide = recon.double().requires_grad_(), zero.double()
    original_pythae(exact, x.double(), wide, wide, None, mode=mode, batch=64)[0].backward()
    expected = scale * exact.grad
    torch.testing.assert_close(leaf.grad.double().cpu(), expected, rtol=2e-3, atol=scale * 6e-8)


EMPTY = [
    (LIBRARIES[0], (0, PIXELS), (0, *IMAGE)),
    *((case, (0, *IMAGE), (0, *IMAGE)) for case in LIBRARIES[5:8]),
]


@IMPLS
@pytest.mark.parametrize(("case", "recon", "x"), EMPTY, ids=str)
def test_empty_batches(case, recon, x, impl, device):
    """Sums of nothing are 0 and means NaN, as the originals', and gradients have their shapes."""
    leaves = [torch.ones(recon), torch.ones(x)]
    leaves += [torch.ones(0, LATENTS) for _ in case.kinds[2:]]
    leaves = [t.to(device).requires_grad_() for t in leaves]
    actual = next(iter(named(case.ours(*leaves, impl=impl)).values()))
    expected = torch.tensor(0.0 if case is LIBRARIES[0] else math.nan)
    torch.testing.assert_close(actual.cpu(), expected, equal_nan=True)
    gradients = torch.autograd.grad(actual, leaves, allow_unused=True)
    assert all(g is None or g.shape == t.shape for g, t in zip(gradients, leaves, strict=True))


def test_antixk_defaults_are_the_models():
    defaults = {n: p.default for n, p in parameters(compat.AntixKBetaVAELoss).items()}
    del defaults["impl"]
    assert defaults == {
        "beta": 4,
        "gamma": 1000.0,
        "max_capacity": 25,
        "Capacity_max_iter": 1e5,
        "loss_type": "B",
    }


def test_bolts_takes_a_posterior_of_any_rank():
    """The mean is over everything that a latent has."""
    mu, std = torch.randn(5, 2, 3, dtype=F64), torch.rand(5, 2, 3, dtype=F64) + 0.1
    image = torch.rand(5, 4, dtype=F64)
    prior = torch.randn(2, 3, dtype=F64), torch.rand(2, 3, dtype=F64) + 0.1
    loss, logs = compat.bolts_vae_loss(image, image, Normal(*prior), Normal(mu, std), 1.0)
    expected = torch.distributions.kl_divergence(Normal(mu, std), Normal(*prior)).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert logs["recon_loss"] == 0


@pytest.mark.parametrize("given", [{"pz_m"}, {"pz_v"}])
@pytest.mark.parametrize("distribution", [False, True])
def test_scvi_half_a_prior(distribution, given):
    """The other half is that of N(0, 1)."""
    q, p = torch.rand(2, 3, 4, dtype=F64) + 0.5, torch.rand(2, 3, 4, dtype=F64) + 0.5
    prior = {name: t for name, t in zip(("pz_m", "pz_v"), p, strict=True) if name in given}
    whole = prior.get("pz_m", torch.zeros(3, 4)), prior.get("pz_v", torch.ones(3, 4))
    first = (Normal(q[0], q[1].sqrt()),) if distribution else q
    pair = (Normal(mean.to(F64), v.to(F64).sqrt()) for mean, v in (q, whole))
    expected = torch.distributions.kl_divergence(*pair).sum(-1)
    torch.testing.assert_close(compat.scvi_kl_local(*first, **prior), expected)


def test_scvi_weight_may_be_a_tensor_with_a_gradient():
    weight = torch.tensor(0.25, dtype=F64, requires_grad=True)
    m, v = Case("", ("latent", "positive"), None, None).tensors(F64)
    kl = compat.scvi_kl_local(m, v, weight)
    kl.sum().backward()
    expected = original_scvi_standard(m, v)
    torch.testing.assert_close(kl, 0.25 * expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weight.grad, expected.sum().detach(), rtol=1e-12, atol=0)
