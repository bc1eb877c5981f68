"""torch.nn.functional: what has no kernel goes to torch as it is."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from fused_elbo import compat
from helpers.machine import KERNELS
from helpers.originals import BATCH, ELEMENTWISE, F64, IMAGE, Case, compare, extra

pytestmark = pytest.mark.usefixtures("one_thread")

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
    with pytest.raises(RuntimeError, match="no kernel supports"):
        getattr(compat, name)(a, b, **TORCH_ONLY[options], impl=KERNELS)


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("shapes", [((), ()), ((0, 3), (0, 3)), ((2, 0), (2, 0))], ids=str)
def test_scalars_and_empty_tensors(name, shapes):
    a, b = (torch.ones(shape) for shape in shapes)
    actual, expected = getattr(compat, name)(a, b), getattr(F, name)(a, b)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    with pytest.raises(RuntimeError, match="no kernel supports"):
        getattr(compat, name)(a, b, impl=KERNELS)


def test_what_has_no_kernel_is_refused_by_name():
    """Broadcast and mixed arguments: "auto" leaves them to torch, "triton" cannot."""
    a, b, one = torch.randn(4, 3), torch.randn(1, 3), torch.ones(4, 3)
    for arguments in ((a, b), (a, a.double())):
        with pytest.raises(RuntimeError, match="no kernel supports"):
            compat.mse_loss(*arguments, impl=KERNELS)
        with pytest.raises(RuntimeError, match="no kernel supports"):
            compat.gaussian_nll_loss(*arguments, one, impl=KERNELS)
    with pytest.raises(RuntimeError, match="no kernel supports"):
        compat.gaussian_nll_loss(a, a, one.double(), impl=KERNELS)
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


@pytest.mark.parametrize("impl", ["reference", KERNELS])
def test_variance_gradient_ignores_the_clamp(impl, device):
    """The value by hand: at v = eps, (1 - r^2 / eps) / (2 eps), and not 0."""
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
        actual = compat.mse_loss(recon, x, impl=KERNELS)
    elif name == "pythae":
        actual = compat.pythae_vae_loss(recon, x, zero, zero, None, impl=KERNELS)[1] * 2 / 784
    else:
        result = compat.antixk_vanilla_vae_loss(recon, x, zero, zero, M_N=1.0, impl=KERNELS)
        actual = result["Reconstruction_Loss"]
    assert actual.item() == pytest.approx(exact, rel=1e-5)
