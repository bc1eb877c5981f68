"""fused_elbo.compat: each drop-in against its original's formula, values and gradients.

The originals are written here from their formulas, over one example and one element at a time
where that is what they mean. torch.nn.functional's own functions are their own originals.
"""

import copy
import functools
import inspect
import itertools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

import fused_elbo
from fused_elbo import compat
from fused_elbo.estimators.compat import nn_functional

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
BATCH, IMAGE, PIXELS, LATENTS = 5, (3, 2, 4), 24, 3
# Rounding, relative to the largest number of a tensor: sums cancel, so an element may lose more.
TOLERANCE = {F64: 1e-12, F32: 3e-6}

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # The kernels take the logarithm of 0 and clamp it, or store nothing: numpy warns of it.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]


def kl_to_standard(mu, logvar):
    """Of each example, by the definition of the KL from means and standard deviations."""
    sigma = torch.exp(logvar / 2)
    return (torch.log(1 / sigma) + (sigma * sigma + mu * mu) / 2 - 1 / 2).sum(-1)


def cross_entropy(p, x):
    """Elementwise, from probabilities, either logarithm no less than -100."""
    log_p, log_not_p = (torch.log(t).clamp_min(-100) for t in (p, 1 - p))
    return -(x * log_p) - (1 - x) * log_not_p


def original_pytorch_examples(recon_x, x, mu, logvar):
    return cross_entropy(recon_x, x.view(-1, PIXELS)).sum() + kl_to_standard(mu, logvar).sum()


def original_pythae(recon_x, x, mu, log_var, z, *, beta=1.0, mode="mse", batch=BATCH):
    error = (recon_x - x) ** 2 / 2 if mode == "mse" else cross_entropy(recon_x, x)
    recon, kld = error.flatten(1).sum(1), kl_to_standard(mu, log_var)
    return (
        sum(r + beta * k for r, k in zip(recon, kld, strict=True)) / batch,
        recon.mean(),
        kld.mean(),
    )


def antixk_terms(recons, input, mu, log_var):
    return ((recons - input) ** 2).sum() / (BATCH * PIXELS), kl_to_standard(
        mu, log_var
    ).sum() / BATCH


def original_antixk_vanilla(recons, input, mu, log_var):
    recon, kl = antixk_terms(recons, input, mu, log_var)
    return {"loss": recon + 0.3 * kl, "Reconstruction_Loss": recon.detach(), "KLD": -kl.detach()}


def original_antixk_beta(recons, input, mu, log_var):
    recon, kl = antixk_terms(recons, input, mu, log_var)
    return {"loss": recon + 7.0 * 0.3 * kl, "Reconstruction_Loss": recon, "KLD": kl}


def original_bolts(x_hat, x, prior_mu, prior_std, mu, std):
    p, q = Normal(prior_mu, prior_std), Normal(mu, std)
    recon = ((x_hat - x) ** 2).mean()
    kl = 0.1 * torch.distributions.kl_divergence(q, p).mean()
    return recon + kl, {"recon_loss": recon, "kl": kl, "loss": recon + kl}


def original_bolts_standard(x_hat, x, mu, std):
    zero, one = torch.zeros_like(mu), torch.ones_like(mu)
    return original_bolts(x_hat, x, zero, one, mu, std)


def original_scvi(qz_m, qz_v, pz_m, pz_v):
    q, p = Normal(qz_m, qz_v.sqrt()), Normal(pz_m, pz_v.sqrt())
    return 0.4 * torch.distributions.kl_divergence(q, p).sum(-1)


def original_scvi_standard(qz_m, qz_v):
    q = Normal(qz_m, qz_v.sqrt())
    return torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum(-1)


KINDS = {
    "image": lambda g: torch.randn(BATCH, *IMAGE, generator=g, dtype=F64),
    "probabilities": lambda g: torch.rand(BATCH, *IMAGE, generator=g, dtype=F64),
    "flat": lambda g: torch.rand(BATCH, PIXELS, generator=g, dtype=F64),
    "latent": lambda g: torch.randn(BATCH, LATENTS, generator=g, dtype=F64),
    "samples": lambda g: torch.randn(BATCH, 2, LATENTS, generator=g, dtype=F64),
    "positive": lambda g: torch.randn(BATCH, LATENTS, generator=g, dtype=F64).exp(),
    "variances": lambda g: torch.randn(BATCH, *IMAGE, generator=g, dtype=F64).exp(),
    "rows": lambda g: torch.randn(BATCH, *IMAGE[:-1], generator=g, dtype=F64).exp(),
    "channels": lambda g: torch.randn(BATCH, 1, *IMAGE[1:], generator=g, dtype=F64).exp(),
    # Some under eps = 1e-6, and some 0.
    "clamped": lambda g: (
        torch.randn(BATCH, *IMAGE, generator=g, dtype=F64).clamp_min(0.0).mul(2e-6)
    ),
    "line": lambda g: torch.randn(1500, generator=g, dtype=F64),
    "unit line": lambda g: torch.rand(1500, generator=g, dtype=F64),
}


class Case(NamedTuple):
    """ours(*tensors, impl=...) and original(*tensors), on tensors of these kinds."""

    name: str
    kinds: tuple
    ours: Callable
    original: Callable

    def __repr__(self):
        return self.name

    def tensors(self, dtype, device="cpu", seed=0):
        generator = torch.Generator().manual_seed(seed)
        values = [KINDS[kind](generator).to(dtype) for kind in self.kinds]
        return [value.to(device).requires_grad_() for value in values]


def ours_bolts(x_hat, x, prior_mu, prior_std, mu, std, **options):
    return compat.bolts_vae_loss(x_hat, x, Normal(prior_mu, prior_std), Normal(mu, std), **options)


IMAGES = ("image", "image", "latent", "latent")
PROBABILITIES = ("probabilities", "probabilities", "latent", "latent", "latent")
LIBRARIES = [
    Case(
        "pytorch_examples",
        ("flat", "probabilities", "latent", "latent"),
        compat.pytorch_examples_vae_loss,
        original_pytorch_examples,
    ),
    Case("pythae_vae", (*IMAGES, "latent"), compat.pythae_vae_loss, original_pythae),
    Case(
        "pythae_vae_bce",
        PROBABILITIES,
        functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce"),
        functools.partial(original_pythae, mode="bce"),
    ),
    Case(
        "pythae_beta_vae",
        (*IMAGES, "latent"),
        functools.partial(compat.pythae_beta_vae_loss, beta=2.5),
        functools.partial(original_pythae, beta=2.5),
    ),
    Case(
        "pythae_beta_vae_bce",
        PROBABILITIES,
        functools.partial(compat.pythae_beta_vae_loss, beta=2.5, reconstruction_loss="bce"),
        functools.partial(original_pythae, beta=2.5, mode="bce"),
    ),
    Case(
        "antixk_vanilla",
        IMAGES,
        functools.partial(compat.antixk_vanilla_vae_loss, M_N=0.3, batch_idx=1),
        original_antixk_vanilla,
    ),
    Case(
        "antixk_beta",
        IMAGES,
        lambda *t, impl: compat.AntixKBetaVAELoss(7.0, loss_type="H", impl=impl)(*t, M_N=0.3),
        original_antixk_beta,
    ),
    Case("bolts", ("image", "image", *("latent", "positive") * 2), ours_bolts, original_bolts),
    Case(
        "bolts_standard",
        ("image", "image", "latent", "positive"),
        lambda x_hat, x, mu, std, impl: compat.bolts_vae_loss(
            x_hat, x, None, Normal(mu, std), impl=impl
        ),
        original_bolts_standard,
    ),
    Case(
        "scvi",
        ("latent", "positive") * 2,
        lambda m, v, pm, pv, impl: compat.scvi_kl_local(m, v, 0.4, pz_m=pm, pz_v=pv, impl=impl),
        original_scvi,
    ),
    Case("scvi_standard", ("latent", "positive"), compat.scvi_kl_local, original_scvi_standard),
]


def functional(name, kinds, **options):
    label = "-".join([name, kinds[-1], *(str(v) for v in options.values())])
    ours = functools.partial(getattr(compat, name), **options)
    return Case(label, kinds, ours, functools.partial(getattr(F, name), **options))


PROBABILITY_LOSSES = [
    functional("binary_cross_entropy", (kind, kind), reduction=reduction)
    for kind in ("probabilities", "unit line")
    for reduction in ("mean", "sum")
]
FUSED = [
    *(
        functional(name, (kind, kind), reduction=reduction)
        for name in ("mse_loss", "binary_cross_entropy_with_logits")
        for kind in ("image", "line")
        for reduction in ("mean", "sum")
    ),
    *(
        functional("gaussian_nll_loss", ("image", "image", var), full=full, reduction=reduction)
        for var in ("variances", "rows", "channels", "clamped")
        for full, reduction in ((False, "mean"), (True, "sum"))
    ),
    functional("gaussian_nll_loss", ("line", "line"), var=1.7, reduction="sum"),
    functional("gaussian_nll_loss", ("image", "image"), var=1e-9, full=True, eps=0.01),
]
CASES = LIBRARIES + PROBABILITY_LOSSES + FUSED


def named(result):
    """Every tensor in a result, by name."""
    if isinstance(result, torch.Tensor):
        return {"loss": result}
    if isinstance(result, tuple):
        return {f"{i}.{n}": t for i, r in enumerate(result) for n, t in named(r).items()}
    return dict(result)


def assert_rounding(actual, expected, dtype, what):
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    size = expected.abs().max().item()
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=TOLERANCE[dtype] * size, msg=lambda m: f"{what}: {m}"
    )


def compare(ours, original, ours_leaves, leaves, dtype):
    """Values, which of them have gradients, and the gradients of each."""
    ours, original = named(ours), named(original)
    assert list(ours) == list(original)
    for name, value in original.items():
        assert_rounding(ours[name].detach(), value.detach(), dtype, name)
        assert ours[name].requires_grad == value.requires_grad, name
        if not value.requires_grad:
            continue
        upstream = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).view(value.shape)
        expected = torch.autograd.grad(
            value, leaves, upstream, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        actual = torch.autograd.grad(
            ours[name],
            ours_leaves,
            upstream.to(ours[name].device),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_rounding(a.cpu(), e, dtype, f"gradient of {name} in argument {i}")


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("impl", ["reference", "triton"])
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
def test_reference_is_the_choice_for_cpu_tensors(case):
    auto, reference = (named(case.ours(*case.tensors(F32), impl=i)) for i in ("auto", "reference"))
    assert all(torch.equal(auto[name], reference[name]) for name in auto)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_used(case, monkeypatch, device):
    """With impl="triton" a kernel runs, and with "reference" none does."""
    from fused_elbo.kernels.triton import elbo_loss, gaussian_kl

    ran = []
    for module in (elbo_loss, gaussian_kl):
        for name in [n for n in vars(module) if n.startswith("launch")]:
            original = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *a, original=original, **k: ran.append(1) or original(*a, **k)
            )
    with torch.no_grad():
        case.ours(*case.tensors(F32, device), impl="reference")
        assert not ran
        case.ours(*case.tensors(F32, device), impl="triton")
    assert ran


# eps, and what it is to tell from 0, are below bfloat16's resolution.
HALF = [case for case in CASES if not case.name.startswith("gaussian_nll_loss")]


@pytest.mark.parametrize("case", HALF, ids=str)
def test_half_precision_returns_what_torch_returns(case, device):
    """bfloat16 in, bfloat16 out, and close to the float64 result of the same inputs."""
    half = case.tensors(BF16)
    wide = [t.detach().double() for t in half]
    expected = named(case.original(*wide))
    actual = named(case.ours(*(t.to(device) for t in half), impl="triton"))
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
        actual = case.ours(*ours, impl="triton")
    assert actual.dtype == expected.dtype == F32
    # Torch takes the logarithm of a float variance in bfloat16.
    rtol = 1e-5 if var or "gaussian" not in case.name else 1e-3
    torch.testing.assert_close(actual.cpu(), expected, rtol=rtol, atol=0)
    (gradient,) = torch.autograd.grad(actual, ours[:1])
    (expected,) = torch.autograd.grad(expected, half)
    assert gradient.dtype == BF16
    torch.testing.assert_close(gradient.cpu(), expected, rtol=0.02, atol=1e-6)


# Binary cross-entropy on probabilities: torch's clamps, at 0 and 1 and beside them.

EDGES = [0.0, 1e-60, 1e-44, 1e-20, 1e-13, 1e-7, 0.3, 1 - 1e-7, 1 - 1e-13, 1 - 2**-53, 1.0]
IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])


@IMPLS
@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("p", EDGES)
def test_probabilities_of_0_and_1(p, x, impl, device):
    """The value clamps either logarithm; the gradient is (p - x) / max(p (1 - p), 1e-12)."""
    log_p = max(math.log(p), -100.0) if p > 0 else -100.0
    log_not_p = max(math.log1p(-p), -100.0) if p < 1 else -100.0
    value = -x * log_p - (1 - x) * log_not_p
    slope = (p - x) / max(p * (1 - p), torch.tensor(1e-12).item())  # torch's is a float32
    for function, share in (
        (compat.pytorch_examples_vae_loss, 1),
        (lambda *t, impl: compat.pythae_vae_loss(*t, reconstruction_loss="bce", impl=impl)[0], 2),
    ):
        probability = torch.full((2, 3), p, dtype=F64, device=device, requires_grad=True)
        data = torch.full((2, 3), x, dtype=F64, device=device, requires_grad=True)
        zero = torch.zeros(2, 1, dtype=F64, device=device)
        loss = function(probability, data, zero, zero, impl=impl)
        assert loss.item() == pytest.approx(6 * value / share, rel=1e-12)
        loss.backward()
        expected = torch.full((2, 3), slope / share, dtype=F64)
        torch.testing.assert_close(probability.grad.cpu(), expected, rtol=1e-12, atol=0)
        exact = torch.tensor(p, dtype=F64)  # not clamped
        expected = ((torch.log1p(-exact) - exact.log()) / share).expand(2, 3)
        torch.testing.assert_close(data.grad.cpu(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("x", [0.0, 0.25, 1.0])
def test_every_probability_of_float32(x, device):
    """Value and gradient of each alone, subnormal numbers and both ends among them."""
    small = torch.logspace(-45, -0.31, 400, dtype=F64).float()
    p = torch.cat([small, 1 - small, torch.tensor([0.0, 1.0])])
    data = torch.full_like(p, x)
    exact = p.double()
    value = F.binary_cross_entropy(exact, data.double(), reduction="none")
    slope = (exact - x) / torch.clamp_min(exact * (1 - exact), torch.tensor(1e-12).item())
    for i in range(0, len(p), 7):
        leaf = p[i : i + 1].to(device).requires_grad_()
        target = data[i : i + 1].to(device)
        loss = compat.binary_cross_entropy(leaf, target, reduction="sum", impl="triton")
        torch.testing.assert_close(loss.double().cpu(), value[i].detach(), rtol=4e-7, atol=1e-44)
        loss.backward()
        torch.testing.assert_close(leaf.grad.double().cpu(), slope[i : i + 1], rtol=5e-7, atol=0)


OUTSIDE = [-1e-6, 1.0 + 1e-6, float("nan")]
CROSS_ENTROPIES = {
    "examples": compat.pytorch_examples_vae_loss,
    "pythae": functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce"),
}


@pytest.mark.parametrize("wrong", OUTSIDE)
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
@pytest.mark.parametrize("which", [0, 1], ids=["recon", "data"])
def test_probabilities_outside_0_and_1(wrong, name, which):
    images, zero = [torch.full((2, 3), 0.5), torch.ones(2, 3)], torch.zeros(2, 1)
    images[which][1, 2] = wrong
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        CROSS_ENTROPIES[name](*images, zero, zero)


@pytest.mark.parametrize("wrong", [*OUTSIDE, -5.0, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1], ids=["input", "target"])
def test_probabilities_in_the_kernel(wrong, which, device):
    """Nobody looks: the loss is NaN, and so is the gradient there, which the formula has not."""
    images = [torch.full((2, 3), 0.25), torch.ones(2, 3)]
    images[which][1, 2] = wrong
    input, target = (t.to(device) for t in images)
    loss = compat.binary_cross_entropy(input.requires_grad_(), target, impl="triton")
    loss.backward()
    assert loss.isnan()
    bad = torch.zeros(2, 3, dtype=torch.bool)
    bad[1, 2] = True
    assert torch.equal(input.grad.isnan().cpu(), bad)


def test_a_second_backward_computes_the_cross_entropy_again(device):
    """The first hands over what forward wrote, scaled in place."""
    p, x = Case("", ("probabilities",) * 2, None, None).tensors(F64, device)
    loss = compat.binary_cross_entropy(p, x, impl="triton")
    first = torch.autograd.grad(3.0 * loss, (p, x), retain_graph=True)
    second = torch.autograd.grad(2.0 * loss, (p, x))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(2.0 * a, 3.0 * b, rtol=1e-14, atol=0)


def test_probabilities_that_are_left_to_torch(device):
    """float16 and autocast: "auto" gives torch's number, "triton" refuses; whole losses do not."""
    p, x = (t.detach().to(device) for t in PROBABILITY_LOSSES[0].tensors(F32))
    mu, logvar = (t.detach().to(device) for t in Case("", ("latent",) * 2, None, None).tensors(F32))
    for dtype in (F16, F32):
        p, x, mu, logvar = (t.to(dtype) for t in (p, x, mu, logvar))
        with torch.autocast(device, BF16, enabled=dtype == F32):
            with pytest.raises(RuntimeError, match="no kernel serves"):
                compat.binary_cross_entropy(p, x, impl="triton")
            if device != "cpu" and dtype == F32:
                continue  # on CUDA torch refuses under autocast
            mean, total = (F.binary_cross_entropy(p, x, reduction=r) for r in ("mean", "sum"))
            assert torch.equal(compat.binary_cross_entropy(p, x), mean)
            kl = kl_to_standard(mu, logvar)
            loss = compat.pytorch_examples_vae_loss(p.flatten(1), x, mu, logvar, impl="triton")
            torch.testing.assert_close(loss, total + kl.sum(), rtol=2e-3, atol=0)
            loss, *_ = CROSS_ENTROPIES["pythae"](p, x, mu, logvar, impl="triton")
            torch.testing.assert_close(loss, PIXELS * mean + kl.mean(), rtol=2e-3, atol=0)


def test_probabilities_in_a_compiled_loss(device):
    """The compiler has torch's cross-entropy, and the kernel of the KL."""
    leaves, same = (LIBRARIES[0].tensors(F64, device) for _ in range(2))
    loss = torch.compile(compat.pytorch_examples_vae_loss, backend="aot_eager", fullgraph=True)
    compare(loss(*leaves, impl="triton"), LIBRARIES[0].original(*same), leaves, same, F64)


# What each original does beside its formula.


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


@pytest.mark.parametrize("impl", ["reference", "triton"])
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled(case, monkeypatch):
    """A whole loss in one graph: values and gradients of the eager one."""
    # Whoever imports Pyro turns it on for all, and the compiler cannot follow.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    torch.compiler.reset()  # of one function, no more than eight
    eager, leaves = case.tensors(F64), case.tensors(F64)
    loss = torch.compile(case.ours, backend="aot_eager", fullgraph=True, dynamic=False)
    compare(loss(*leaves, impl="auto"), case.ours(*eager, impl="auto"), leaves, eager, F64)


def test_antixk_counts_without_compiling_anew():
    from torch._dynamo.testing import CompileCounterWithBackend

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


def test_scvi_weight_may_be_a_tensor_with_a_gradient():
    weight = torch.tensor(0.25, dtype=F64, requires_grad=True)
    m, v = Case("", ("latent", "positive"), None, None).tensors(F64)
    kl = compat.scvi_kl_local(m, v, weight)
    kl.sum().backward()
    expected = original_scvi_standard(m, v)
    torch.testing.assert_close(kl, 0.25 * expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(weight.grad, expected.sum().detach(), rtol=1e-12, atol=0)


# torch.nn.functional: what has no kernel goes to torch as it is.


def extra(kind, seed=3):
    return KINDS[kind](torch.Generator().manual_seed(seed))


ELEMENTWISE = ["mse_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"]
TORCH_ONLY = {
    "none": {"reduction": "none"},
    "legacy sum": {"size_average": False},
    "legacy none": {"reduce": False},
    "weight": {"weight": extra("positive").repeat(1, 8).view(BATCH, *IMAGE)},
    "pos_weight": {"pos_weight": extra("positive")[0, 0]},
}


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("binary_cross_entropy_with_logits", options) for options in TORCH_ONLY),
        *(
            (name, options)
            for name in ("mse_loss", "binary_cross_entropy")
            for options in TORCH_ONLY
            if options != "pos_weight"
        ),
    ],
)
def test_options_without_a_kernel(name, options):
    a, b = Case("", ("probabilities",) * 2, None, None).tensors(F64)
    actual = getattr(compat, name)(a, b, **TORCH_ONLY[options])
    assert torch.equal(actual, getattr(F, name)(a, b, **TORCH_ONLY[options]))
    with pytest.raises(RuntimeError, match="no kernel serves"):
        getattr(compat, name)(a, b, **TORCH_ONLY[options], impl="triton")


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shapes", [((), ()), ((0, 3), (0, 3)), ((2, 0), (2, 0))], ids=str)
def test_scalars_and_empty_tensors(name, shapes):
    a, b = (torch.ones(shape) for shape in shapes)
    actual, expected = getattr(compat, name)(a, b), getattr(F, name)(a, b)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    with pytest.raises(RuntimeError, match="no kernel serves"):
        getattr(compat, name)(a, b, impl="triton")


def test_what_has_no_kernel_is_refused_by_name():
    """Broadcast and mixed arguments: "auto" leaves them to torch, "triton" cannot."""
    a, b, one = torch.randn(4, 3), torch.randn(1, 3), torch.ones(4, 3)
    for arguments in ((a, b), (a, a.double())):
        with pytest.raises(RuntimeError, match="no kernel serves"):
            compat.mse_loss(*arguments, impl="triton")
        with pytest.raises(RuntimeError, match="no kernel serves"):
            compat.gaussian_nll_loss(*arguments, one, impl="triton")
    with pytest.raises(RuntimeError, match="no kernel serves"):
        compat.gaussian_nll_loss(a, a, one.double(), impl="triton")
    integers = compat.gaussian_nll_loss(a.long(), b.long().expand(4, 3), 0.5)
    assert torch.equal(integers, F.gaussian_nll_loss(a.long(), b.long().expand(4, 3), 0.5))
    mixed = compat.gaussian_nll_loss(a, a.double(), one)
    assert torch.equal(mixed, F.gaussian_nll_loss(a, a.double(), one))


def test_broadcasting_warns_as_torch_does():
    a, b = torch.randn(4, 3), torch.randn(3)
    with pytest.warns(UserWarning, match="target size"):
        actual = compat.mse_loss(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(actual, F.mse_loss(a, b))
    with pytest.raises(ValueError, match="must be the same as input size"):
        compat.binary_cross_entropy_with_logits(a, b)
    loss = compat.gaussian_nll_loss(a, b, torch.ones(4, 3))  # without a word, as torch
    assert torch.equal(loss, F.gaussian_nll_loss(a, b, torch.ones(4, 3)))


@pytest.mark.parametrize("var", ["variances", "rows", "channels", "clamped"])
def test_gaussian_nll_of_elements(var):
    leaves = Case("", ("image", "image", var), None, None).tensors(F64)
    for full in (False, True):
        ours = compat.gaussian_nll_loss(*leaves, full=full, reduction="none")
        original = F.gaussian_nll_loss(*leaves, full=full, reduction="none")
        compare(ours, original, leaves, leaves, F64)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_variance_gradient_ignores_the_clamp(impl, device):
    """By hand: at v = eps, (1 - r^2 / eps) / (2 eps), and not 0."""
    var = torch.tensor([[0.0, 1e-3, 2.0]], dtype=F64, device=device, requires_grad=True)
    zero, one = torch.zeros_like(var), torch.ones_like(var)
    loss = compat.gaussian_nll_loss(zero, one, var, eps=0.1, reduction="sum", impl=impl)
    loss.backward()
    slope = (1 - 1 / 0.1) / (2 * 0.1)
    expected = torch.tensor([[slope, slope, (1 - 1 / 2) / 4]], dtype=F64)
    torch.testing.assert_close(var.grad.cpu(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["pythae", "antixk", "mse_loss"])
def test_small_errors_keep_their_digits(name, device):
    """Float32 adds 784 constants of 0.9 to a squared error of 8e-9: they must not be added."""
    x = torch.randn(3, 784, device=device)
    recon = x + 1e-6 * torch.randn(3, 784, device=device)
    zero = torch.zeros(3, 1, device=device)
    exact = ((recon.double() - x.double()) ** 2).mean().item()
    if name == "mse_loss":
        actual = compat.mse_loss(recon, x, impl="triton")
    elif name == "pythae":
        actual = compat.pythae_vae_loss(recon, x, zero, zero, None, impl="triton")[1] * 2 / 784
    else:
        result = compat.antixk_vanilla_vae_loss(recon, x, zero, zero, M_N=1.0, impl="triton")
        actual = result["Reconstruction_Loss"]
    assert actual.item() == pytest.approx(exact, rel=1e-5)


# No function waits for a device. On "meta" there is nothing to wait for: looking at a value raises.


# Normal itself looks at its arguments: bolts is left out.
BLIND = [case for case in LIBRARIES if "bolts" not in case.name]


@pytest.mark.parametrize("case", BLIND, ids=str)
def test_no_value_is_looked_at(case):
    case.ours(*case.tensors(F32, "meta"), impl="auto")


def test_gaussian_nll_loss_looks_at_no_variance():
    tensors = Case("", ("image", "image", "variances"), None, None).tensors(F32, "meta")
    with pytest.raises(Exception, match=r"[Mm]eta"):
        F.gaussian_nll_loss(*tensors)
    assert compat.gaussian_nll_loss(*tensors).device.type == "meta"


def test_antixk_capacity_looks_at_no_value():
    tensors = LIBRARIES[5].tensors(F32, "meta")
    assert compat.AntixKBetaVAELoss()(*tensors, M_N=1.0)["loss"].device.type == "meta"


# Bad input: the original's error or a better one, never another number.


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("bad", [-1.0, -1e-30])
def test_negative_variances(bad, impl):
    var = torch.ones(2, 3)
    var[1, 1] = bad
    for function in (F.gaussian_nll_loss, functools.partial(compat.gaussian_nll_loss, impl=impl)):
        with pytest.raises(ValueError, match="negative"):
            function(torch.zeros(2, 3), torch.zeros(2, 3), var)
        with pytest.raises(ValueError, match="negative"):
            function(torch.zeros(2, 3), torch.zeros(2, 3), bad)


def test_negative_variances_where_nobody_looks():
    """NaN, and not the finite number that clamping at eps would make of them."""
    clamped = nn_functional._clamped(torch.tensor([-1.0, 0.0, 0.5, torch.nan, torch.inf]), 0.1)
    assert torch.equal(clamped.isnan(), torch.tensor([True, False, False, True, False]))
    assert clamped[[1, 2, 4]].tolist() == pytest.approx([0.1, 0.5, math.inf])

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def loss(input, target, var):
        return compat.gaussian_nll_loss(input, target, var)

    leaves = Case("", ("image", "image", "clamped"), None, None).tensors(F64)
    compare(loss(*leaves), F.gaussian_nll_loss(*leaves), leaves, leaves, F64)
    assert loss(*leaves[:2], leaves[2] - 1).isnan()


@pytest.mark.parametrize("var", [1, None, "1", [1.0]])
def test_variance_that_is_no_tensor(var):
    zero = torch.zeros(2, 3)
    with pytest.raises((TypeError, AttributeError)):
        F.gaussian_nll_loss(zero, zero, var)
    with pytest.raises(TypeError, match=r"var must be a torch\.Tensor or a float"):
        compat.gaussian_nll_loss(zero, zero, var)


@pytest.mark.parametrize("shape", [(3,), (), (1, 1), (2, 2), (2, 3, 1), (1, 2, 3)], ids=str)
def test_variance_of_a_wrong_shape(shape):
    zero = torch.zeros(2, 3)
    for function in (F.gaussian_nll_loss, compat.gaussian_nll_loss):
        with pytest.raises(ValueError, match="var is of incorrect size"):
            function(zero, zero, torch.ones(shape))


def test_unknown_reduction():
    zero = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="'none', 'mean', 'sum'"):
        compat.gaussian_nll_loss(zero, zero, zero + 1, reduction="avg")
    for name in ELEMENTWISE:
        with pytest.raises(ValueError, match="avg"):
            getattr(compat, name)(zero, zero, reduction="avg")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_scvi_variances_that_are_none(bad):
    v = torch.ones(3, 2)
    v[1, 1] = bad
    with pytest.raises(ValueError):  # noqa: PT011  the original's, whatever it says
        Normal(torch.zeros(3, 2), v.sqrt(), validate_args=True)
    for arguments in ({"qz_v": v}, {"qz_v": torch.ones(3, 2), "pz_v": v}):
        with pytest.raises(ValueError, match="must be a positive variance"):
            compat.scvi_kl_local(torch.zeros(3, 2), **arguments)


def test_scvi_variances_where_nobody_looks():
    """Neither is a number that a training run could mistake for a KL."""

    @functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    def kl(v):
        return compat.scvi_kl_local(torch.zeros(1, 1), v)

    assert kl(torch.full((1, 1), -1.0)).isnan()
    assert kl(torch.zeros(1, 1)).item() == math.inf


GOOD = (torch.zeros(4, 6), torch.zeros(4, 6), torch.zeros(4, 2), torch.zeros(4, 2))
TAKES_LOGVAR = {
    "pytorch_examples": compat.pytorch_examples_vae_loss,
    "pythae": compat.pythae_vae_loss,
    "pythae_bce": functools.partial(compat.pythae_vae_loss, reconstruction_loss="bce"),
    "antixk_vanilla": functools.partial(compat.antixk_vanilla_vae_loss, M_N=1.0),
    "antixk_beta": functools.partial(compat.AntixKBetaVAELoss(), M_N=1.0),
}


@pytest.mark.parametrize("name", TAKES_LOGVAR)
def test_a_float_is_no_logvar(name):
    """A standard deviation given as the number that it is in many a model."""
    recon, x, mu, _ = GOOD
    with pytest.raises(TypeError, match=r"log_?var must be a torch\.Tensor, got float"):
        TAKES_LOGVAR[name](recon, x, mu, 0.1)


@pytest.mark.parametrize("name", sorted(set(TAKES_LOGVAR) - {"pytorch_examples"}))
@pytest.mark.parametrize(
    "wrong",
    [
        {2: torch.zeros(3, 2), 3: torch.zeros(3, 2)},  # another batch
        {2: torch.zeros(4, 4, 2), 3: torch.zeros(4, 4, 2)},  # KL [4, 4] would broadcast with [4]
        {2: torch.zeros(2), 3: torch.zeros(2)},
        {2: torch.zeros(4, 3)},
        {0: torch.zeros(4, 5)},
        {0: torch.zeros(4, 1)},  # torch broadcasts, with a warning
    ],
    ids=["batch", "rank", "one example", "latents", "pixels", "one pixel"],
)
def test_shapes_that_do_not_fit(name, wrong):
    arguments = [wrong.get(i, tensor) for i, tensor in enumerate(GOOD)]
    with pytest.raises(ValueError, match=r"\(\[?4, "):
        TAKES_LOGVAR[name](*arguments)


def test_other_bad_arguments():
    recon, x, mu, logvar = GOOD
    with pytest.raises(TypeError, match="M_N"):
        compat.antixk_vanilla_vae_loss(recon, x, mu, logvar)
    with pytest.raises(TypeError, match="M_N"):
        compat.AntixKBetaVAELoss()(recon, x, mu, logvar)
    with pytest.raises(ValueError, match="'H', 'B'"):
        compat.AntixKBetaVAELoss(loss_type="C")
    with pytest.raises(ValueError, match="'mse', 'bce'"):
        compat.pythae_vae_loss(recon, x, mu, logvar, None, reconstruction_loss="l1")
    with pytest.raises(ValueError, match=r"recon_x \(4, 5\), x \(4, 6\)"):
        compat.pythae_vae_loss(torch.zeros(4, 5), x, mu, logvar)
    with pytest.raises(ValueError, match=r"recons and input of one shape"):
        compat.antixk_vanilla_vae_loss(torch.zeros(4, 1), x, mu, logvar, M_N=1.0)
    with pytest.raises(ValueError, match=r"x_hat and x of one shape"):
        compat.bolts_vae_loss(torch.zeros(4, 1), x, None, Normal(mu, torch.ones(4, 2)))
    wide = Normal(mu.double(), torch.ones(4, 2, dtype=F64))
    with pytest.raises(TypeError, match="q and p must have one dtype"):
        compat.bolts_vae_loss(recon, x, wide, Normal(mu, torch.ones(4, 2)))
    with pytest.raises(TypeError, match=r"q must be a torch\.distributions\.Normal, got Tensor"):
        compat.bolts_vae_loss(recon, x, None, mu)
    standard = Normal(mu, torch.ones(4, 2))
    independent = torch.distributions.Independent(standard, 1)
    with pytest.raises(TypeError, match=r"p must be a torch\.distributions\.Normal, got Ind"):
        compat.bolts_vae_loss(recon, x, independent, standard)
    with pytest.raises(ValueError, match="impl must be one of"):
        compat.mse_loss(recon, x, impl="cuda")


# Signatures.


def parameters(function):
    return dict(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", [*ELEMENTWISE, "gaussian_nll_loss"])
def test_signature_is_torchs(name):
    ours, original = parameters(getattr(compat, name)), parameters(getattr(F, name))
    impl = ours.pop("impl")
    assert impl.kind is impl.KEYWORD_ONLY
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in original.values()
    ]


ARGUMENTS = {
    "pytorch_examples_vae_loss": ["recon_x", "x", "mu", "logvar"],
    "pythae_vae_loss": ["recon_x", "x", "mu", "log_var", "z"],
    "pythae_beta_vae_loss": ["recon_x", "x", "mu", "log_var", "z"],
    "antixk_vanilla_vae_loss": ["recons", "input", "mu", "log_var"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_the_originals(name):
    """And all that is ours can be given by name alone."""
    ours = parameters(getattr(compat, name)).values()
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ARGUMENTS[name]


def test_names():
    assert all(callable(getattr(compat, name)) for name in compat.__all__)
    assert not hasattr(fused_elbo, "effective_beta")  # import fused_elbo brings none of it


# effective_beta: gradients of the loss are those of the ELBO with that beta, but for one factor.


def assert_gradient_of_elbo(loss, leaves, recon, x, kl, beta, likelihood):
    """d loss = factor * d elbo_loss(beta), the factor from the decoder's gradient."""
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    elbo = fused_elbo.elbo_loss(recon, x, kl=kl, beta=beta, **likelihood)
    elbo_gradients = torch.autograd.grad(elbo, leaves)
    factor = (gradients[0] * elbo_gradients[0]).sum() / elbo_gradients[0].square().sum()
    for actual, expected in zip(gradients, elbo_gradients, strict=True):
        assert_rounding(actual, factor * expected, F64, "gradient")


def reduce(terms, reduction):
    """[B, n] by the names that effective_beta has."""
    if reduction == "batchmean":
        return terms.sum() / len(terms)
    return getattr(terms, reduction)()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "mse"])
@pytest.mark.parametrize(
    ("recon_reduction", "kl_reduction"),
    list(itertools.product(("sum", "batchmean", "mean"), repeat=2)),
)
def test_effective_beta(likelihood, recon_reduction, kl_reduction):
    recon, mu, logvar = leaves = Case("", ("flat", "latent", "latent"), None, None).tensors(F64)
    x, variance = extra("flat"), 0.2 if likelihood == "mse" else 1.0
    options = {"likelihood": "bernoulli"}
    if likelihood == "bernoulli":
        terms = F.binary_cross_entropy_with_logits(recon, x, reduction="none")
    elif likelihood == "gaussian":
        variances = extra("flat", seed=4) + 0.1
        terms = F.gaussian_nll_loss(recon, x, variances, reduction="none")
        options = {"likelihood": "gaussian", "recon_logvar": variances.log()}
    else:
        terms = (recon - x) ** 2
        options = {"likelihood": "gaussian", "recon_logvar": math.log(variance)}
    kl_terms = 0.5 * (mu**2 + logvar.exp() - 1 - logvar)
    loss = 3.0 * reduce(terms, recon_reduction) + 0.7 * reduce(kl_terms, kl_reduction)
    beta = compat.effective_beta(
        likelihood=likelihood,
        recon_reduction=recon_reduction,
        kl_reduction=kl_reduction,
        pixels=PIXELS,
        latents=LATENTS,
        batch=BATCH,
        recon_weight=3.0,
        kl_weight=0.7,
        variance=variance,
    )
    assert_gradient_of_elbo(loss, leaves, recon, x, kl_terms.sum(1), beta, options)


MSE = {"likelihood": "mse", "recon_reduction": "mean"}
EFFECTIVE = {
    "pytorch_examples": {
        "likelihood": "bernoulli",
        "recon_reduction": "sum",
        "kl_reduction": "sum",
    },
    "pythae_vae": {"likelihood": "mse", "recon_weight": 0.5},
    "pythae_vae_bce": {"likelihood": "bernoulli"},
    "pythae_beta_vae": {"likelihood": "mse", "recon_weight": 0.5, "kl_weight": 2.5},
    "antixk_vanilla": MSE | {"pixels": PIXELS, "kl_weight": 0.3},
    "antixk_beta": MSE | {"pixels": PIXELS, "kl_weight": 7.0 * 0.3},
    "bolts_standard": MSE
    | {"pixels": PIXELS, "kl_reduction": "mean", "latents": LATENTS, "kl_weight": 0.1},
}
BETAS = {
    "pytorch_examples": 1.0,
    "pythae_vae": 1.0,
    "pythae_vae_bce": 1.0,
    "pythae_beta_vae": 2.5,
    "antixk_vanilla": 0.3 * PIXELS / 2,
    "antixk_beta": 7.0 * 0.3 * PIXELS / 2,
    "bolts_standard": 0.1 * PIXELS / (2 * LATENTS),
}


@pytest.mark.parametrize("name", EFFECTIVE)
def test_effective_beta_of_the_libraries(name):
    """The originals' gradients, and the numbers that the docstrings give."""
    case = next(case for case in LIBRARIES if case.name == name)
    leaves = case.tensors(F64)
    beta = compat.effective_beta(**EFFECTIVE[name])
    assert beta == pytest.approx(BETAS[name], rel=1e-14)
    loss = next(iter(named(case.original(*leaves)).values()))
    recon, x, mu, last = leaves[:4]
    x = x.detach().view(recon.shape)
    logvar = 2 * last.log() if "bolts" in name else last
    likelihood = {"likelihood": "gaussian"}
    if EFFECTIVE[name]["likelihood"] == "bernoulli":
        recon, likelihood = torch.logit(recon), {"likelihood": "bernoulli"}
    kl = kl_to_standard(mu, logvar)
    assert_gradient_of_elbo(loss, [leaves[0], mu, last], recon, x, kl, beta, likelihood)


def test_effective_beta_of_a_capacity():
    """Type B pushes the KL to its capacity with gamma's weight: up from below, down from above."""
    beta = compat.effective_beta(**MSE, pixels=PIXELS, kl_weight=1000.0 * 0.3)
    for most, sign in ((0.0, 1), (1e6, -1)):
        leaves = LIBRARIES[5].tensors(F64)
        loss_function = compat.AntixKBetaVAELoss(max_capacity=most, Capacity_max_iter=1)
        loss = loss_function(*leaves, M_N=0.3)["loss"]
        recon, x, mu, log_var = leaves
        kl = kl_to_standard(mu, log_var)
        options = {"likelihood": "gaussian"}
        gradients = [recon, mu, log_var]
        assert_gradient_of_elbo(loss.sum(), gradients, recon, x.detach(), kl, sign * beta, options)


def test_effective_beta_of_configurations_in_the_wild():
    vanilla = compat.effective_beta(**MSE, pixels=3 * 64 * 64, kl_weight=0.00025)
    assert vanilla == pytest.approx(1.536)
    bolts = compat.effective_beta(
        **MSE, pixels=3 * 32 * 32, kl_reduction="mean", latents=256, kl_weight=0.1
    )
    assert bolts == pytest.approx(0.6)
    # The variance at which the same loss has beta = 1 is beta at variance 1.
    assert compat.effective_beta(
        **MSE, pixels=3 * 64 * 64, kl_weight=0.00025, variance=vanilla
    ) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"likelihood": "bce"}, ValueError, "'bernoulli', 'gaussian', 'mse'"),
        ({"recon_reduction": "none"}, ValueError, "'sum', 'batchmean', 'mean'"),
        ({"kl_reduction": "none"}, ValueError, "'sum', 'batchmean', 'mean'"),
        ({"recon_reduction": "mean"}, ValueError, "pixels is needed for recon_reduction"),
        ({"kl_reduction": "mean"}, ValueError, "latents is needed for kl_reduction"),
        ({"kl_reduction": "sum"}, ValueError, "batch is needed"),
        ({"recon_reduction": "sum"}, ValueError, "batch is needed"),
        ({"kl_reduction": "mean", "latents": 2.0}, TypeError, "latents must be an int"),
        ({"recon_reduction": "mean", "pixels": 0}, ValueError, "pixels must be at least 1"),
        ({"recon_weight": 0.0}, ValueError, "must be positive"),
        ({"recon_weight": -1.0}, ValueError, "recon_weight must be a number in"),
        ({"variance": 0.0}, ValueError, "must be positive"),
        ({"likelihood": "gaussian", "variance": 2.0}, ValueError, "variance is an argument of"),
        ({"kl_weight": math.nan}, ValueError, "kl_weight must be a number"),
    ],
    ids=str,
)
def test_effective_beta_bad_arguments(wrong, error, match):
    with pytest.raises(error, match=match):
        compat.effective_beta(**{"likelihood": "mse"} | wrong)
