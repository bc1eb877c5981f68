"""The original's error or a better one, never another number."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from fused_elbo import compat
from fused_elbo.estimators.compat import torch_nn
from helpers.machine import KERNELS
from helpers.originals import ELEMENTWISE, F64, Case, compare

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("impl", ["reference", KERNELS])
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
    clamped = torch_nn._clamped(torch.tensor([-1.0, 0.0, 0.5, torch.nan, torch.inf]), 0.1)
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
    with pytest.raises(TypeError, match=r"q must be a torch\.distributions\.Normal, got Tensor"):
        compat.bolts_vae_loss(recon, x, None, mu)
    standard = Normal(mu, torch.ones(4, 2))
    independent = torch.distributions.Independent(standard, 1)
    with pytest.raises(TypeError, match=r"p must be a torch\.distributions\.Normal, got Ind"):
        compat.bolts_vae_loss(recon, x, independent, standard)
    with pytest.raises(ValueError, match="qz_v goes with a tensor, but qz_m is a Normal"):
        compat.scvi_kl_local(standard, torch.ones(4, 2))
    with pytest.raises(TypeError, match="qz_v, the variance, is needed"):
        compat.scvi_kl_local(mu)
    with pytest.raises(ValueError, match=r"recon_x \[B, K, P\].*recon_x \(4, 6\)"):
        compat.pythae_iwae_loss(recon, x, mu, logvar, mu)
    samples = recon.unsqueeze(1), x, *(mu.unsqueeze(1),) * 3
    with pytest.raises(ValueError, match="reconstruction_loss must be one of"):
        compat.pythae_iwae_loss(*samples, reconstruction_loss="l1")
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        compat.pythae_iwae_loss(samples[0] - 2, *samples[1:], reconstruction_loss="bce")
    with pytest.raises(ValueError, match="impl must be one of"):
        compat.mse_loss(recon, x, impl="cuda")
