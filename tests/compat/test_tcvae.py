"""The beta-TCVAE losses and the VampPrior's: numbers of the originals themselves, and their state.

The originals keep their weights in float32, so that 1e-6 is what can be asked in float64.
"""

import collections
import copy
import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fused_elbo import compat
from helpers.launches import watch
from helpers.machine import KERNELS
from helpers.originals import F64, column_weights, tcvae_terms
from helpers.samples import IMPLS

pytestmark = pytest.mark.usefixtures("one_thread")


def ramps(*pixels, device="cpu"):
    """recon and x [4, *pixels] in [0, 0.9], mu, log_var and z [4, 3]."""
    mu, log_var, noise = torch.linspace(-7, 7, 36, dtype=F64).sin().view(3, 4, 3)
    images = torch.cos(torch.linspace(0.9, 8.1, 8 * pixels[-1] * pixels[-2], dtype=F64))
    recon, x = images.abs().mul(0.9).view(2, 4, *pixels)
    z = mu + torch.exp(0.5 * log_var) * noise
    return [t.to(device) for t in (recon, x, mu, log_var, z)]


def close(actual, expected):
    assert list(actual) == pytest.approx(list(expected), rel=1e-6, abs=1e-6)


# From its VAE.elbo at commit 1a3577d: the second result, and the first minus it, by options.
RTQICHEN = [-38835.8810477, -14697.6864635, -16203.4946556, -53882.8649025]
RTQICHEN_BY_OPTIONS = [
    ({"beta": 6.0, "tcvae": True}, [-42.1179061, -39.9515282, -40.8830274, -39.9201512]),
    (
        {"beta": 6.0, "tcvae": True, "mss": True, "lamb": 0.3},
        [-1.32453539, -0.800031883, 0.858658671, -1.39304527],
    ),
    (
        {"beta": 6.0, "mss": True, "include_mutinfo": False},
        [8.7855149, 4.66337625, -2.02206688, 0.127481083],
    ),
    (
        {"beta": 3.0, "mss": True, "lamb": 0.2},
        [-3.42813536, -0.0580601987, 3.43268977, 2.62729763],
    ),
    (
        {"beta": 3.0, "tcvae": True, "include_mutinfo": False},
        [-11.7160698, -12.0397443, -13.919391, -13.3691526],
    ),
    ({}, [0.0, 0.0, 0.0, 0.0]),
]


@IMPLS
@pytest.mark.parametrize(("options", "expected"), RTQICHEN_BY_OPTIONS, ids=str)
def test_rtqichen(options, expected, impl, device):
    """Its logits saturate: 4096 pixels, some of them sure to 1e-8."""
    recon, x, mu, log_var, z = ramps(1, 64, 64, device=device)
    parameters = torch.stack([mu, 0.5 * log_var], -1)
    objective, elbo = compat.rtqichen_tcvae_elbo(
        x, 60 * recon, z, parameters, 50, **options, impl=impl
    )
    assert elbo.tolist() == pytest.approx(RTQICHEN, rel=1e-11)
    close((objective - elbo).tolist(), expected)
    assert not elbo.requires_grad


# (loss, recon, kld) of pythae 0.1.2's BetaTCVAE.loss_function, by (use_mss, reconstruction_loss).
PYTHAE = {
    (True, "mse"): [0.00603455104873, 0.272659610722, -0.266625059673],
    (True, "bce"): [4.06987228017, 4.33649733984, -0.266625059673],
    (False, "mse"): [35.7558401963, 0.272659610722, 35.4831805856],
    (False, "bce"): [39.8196779254, 4.33649733984, 35.4831805856],
}


@IMPLS
@pytest.mark.parametrize(("mss", "mode"), PYTHAE)
def test_pythae(mss, mode, impl, device):
    weights = {"alpha": 0.7, "beta": 6.0, "gamma": 1.3}
    options = {"use_mss": mss, "reconstruction_loss": mode, "impl": impl, **weights}
    parts = compat.pythae_beta_tcvae_loss(*ramps(1, 2, 3, device=device), 50, **options)
    close(map(float, parts), PYTHAE[mss, mode])


# From disvae at commit f045219: three losses in training, by (is_mss, rec_dist), with ten steps of
# annealing, and what it stores of the first.
DISVAE = {
    (True, "bernoulli"): [-7.0018988903, -7.06803728106, -7.13417567181],
    (True, "gaussian"): [127.718005238, 127.651866847, 127.585728456],
    (True, "laplace"): [-6.54633327691, -6.61247166767, -6.67861005843],
    (False, "bernoulli"): [-11.7831716271, -11.4126705853, -11.0421695434],
    (False, "gaussian"): [122.936732501, 123.307233543, 123.677734585],
    (False, "laplace"): [-11.3276060137, -10.9571049719, -10.58660393],
}
STORED = {
    "recon_loss": 4.33649734,
    "loss": -7.00189889,
    "mi_loss": 2.423945274,
    "tc_loss": -2.282700519,
    "dw_kl_loss": -0.6613839076,
    "kl_loss": 1.078308072,
    "kl_loss_0": 0.3676820475,
    "kl_loss_1": 0.3533631884,
    "kl_loss_2": 0.3572628362,
}


@IMPLS
@pytest.mark.parametrize(("mss", "rec_dist"), DISVAE)
def test_disvae(mss, rec_dist, impl, device):
    recon, x, mean, logvar, z = ramps(1, 2, 3, device=device)
    options = {"is_mss": mss, "rec_dist": rec_dist, "steps_anneal": 10, "impl": impl}
    loss = compat.DisvaeBtcvaeLoss(50, **options)
    stored = collections.defaultdict(list)
    close(
        [loss(x, recon, (mean, logvar), True, stored, z).item() for _ in range(3)],
        DISVAE[mss, rec_dist],
    )
    assert loss.n_train_steps == 3
    assert list(stored) == list(STORED)
    if (mss, rec_dist) == (True, "bernoulli"):
        close((value for (value,) in stored.values()), STORED.values())


def test_disvae_stores_every_so_many_steps_and_always_in_validation():
    recon, x, mean, logvar, z = ramps(1, 2, 3)
    loss = compat.DisvaeBtcvaeLoss(50, record_loss_every=2, steps_anneal=4)
    stored = collections.defaultdict(list)
    trained = [loss(x, recon, (mean, logvar), True, stored, z).item() for _ in range(5)]
    assert len(stored["loss"]) == 3  # of steps 1, 3 and 5
    assert trained[3] == trained[4] != trained[2]
    validated = [loss(x, recon, (mean, logvar), False, stored, z).item() for _ in range(2)]
    assert validated == [trained[4]] * 2 == stored["loss"][3:]
    assert loss.n_train_steps == 5


# From AntixK's BetaTCVAE.loss_function at commit a6896b9, in the fourth of 200 steps.
ANTIXK = {
    "loss": -10.8811951484,
    "Reconstruction_Loss": 2.18127688577,
    "KLD": -0.66228996941,
    "TC_Loss": -2.3110838775,
    "MI_Loss": 2.45323469454,
}


@IMPLS
def test_antixk(impl, device):
    loss = compat.AntixKBetaTCVAELoss(impl=impl)
    loss.num_iter = 3
    parts = loss(*ramps(1, 2, 3, device=device), M_N=0.1, optimizer_idx=0)
    assert list(parts) == list(ANTIXK)
    close(map(float, parts.values()), ANTIXK.values())


def test_antixk_counts_what_its_model_trains_on():
    model, tensors = torch.nn.Linear(1, 1), ramps(1, 2, 3)
    model.loss_function = compat.AntixKBetaTCVAELoss(anneal_steps=2, model=model)
    losses = [model.loss_function(*tensors, M_N=0.1)["loss"].item() for _ in range(3)]
    assert losses[0] > losses[1] == losses[2]  # the dimension-wise estimate is negative here
    model.eval()
    assert model.loss_function(*tensors, M_N=0.1)["loss"].item() == losses[2]
    assert model.loss_function.num_iter == 3
    model.loss_function.num_iter = 0
    assert model.loss_function(*tensors, M_N=0.1)["loss"].item() == losses[2]
    again = copy.deepcopy(model)
    again.train().loss_function(*tensors, M_N=0.1)
    assert (again.loss_function.num_iter, model.loss_function.num_iter) == (1, 0)


# From pythae 0.1.2's VAMP.loss_function, in epoch 3 of 10.
VAMP = {
    "mse": [-0.0932407003615, 0.272659610722, -1.21966770361],
    "bce": [3.97059702876, 4.33649733984, -1.21966770361],
}


@IMPLS
@pytest.mark.parametrize("mode", VAMP)
def test_pythae_vamp(mode, impl, device):
    tensors = ramps(1, 2, 3, device=device)
    prior = {"prior_mu": tensors[2][:2] + 0.1, "prior_log_var": tensors[3][:2] - 0.3}
    vamp = functools.partial(
        compat.pythae_vamp_loss, *tensors, **prior, reconstruction_loss=mode, impl=impl
    )
    close(map(float, vamp(3, linear_scheduling_steps=10)), VAMP[mode])
    whole = VAMP[mode][1] + VAMP[mode][2]
    for options in ({}, {"linear_scheduling_steps": 10, "training": False}):
        close([vamp(3, **options)[0].item()], [whole])
    close([vamp(30, linear_scheduling_steps=10)[0].item()], [whole])


@pytest.mark.parametrize("impl", ["auto", KERNELS, "reference"])
@pytest.mark.parametrize("batch", [2, 3, 6])
def test_columns_of_small_batches(batch, impl, device):
    """In which the odd row is the first, or the weights but those of two columns are few."""
    generator = torch.Generator().manual_seed(batch)
    z, mu, log_var = q = torch.randn(3, batch, 2, generator=generator, dtype=F64)
    here = [q[i].to(device) for i in (0, 0, 1, 2, 0)]
    kld = functools.partial(compat.pythae_beta_tcvae_loss, *here, batch, impl=impl)
    expected = [t.mean() for t in tcvae_terms(z, mu, log_var, column_weights(batch, batch))]
    for i, term in enumerate(expected):
        weights = {name: float(i == j) for j, name in enumerate(("alpha", "beta", "gamma"))}
        torch.testing.assert_close(kld(**weights)[2].cpu(), term, rtol=1e-12, atol=1e-12)


@pytest.mark.numba
def test_one_call_of_each_kernel_for_all_latents(device, monkeypatch):
    """From 2**16 latents of pairs on; below is one tensor of them."""
    ran = watch(monkeypatch)
    for latents, calls in ((15, 0), (16, 1)):
        x, (mu, log_var, z) = torch.zeros(64, 6), torch.randn(3, 64, latents)
        loss = compat.pythae_beta_tcvae_loss(x, x, mu, log_var, z, 1000)[0]
        assert ran.count("mixture_log_prob") == ran.count("marginals_log_prob") == calls
        same = compat.pythae_beta_tcvae_loss(x, x, mu, log_var, z, 1000, impl="reference")[0]
        torch.testing.assert_close(loss, same)
        ran.clear()


def test_no_tensor_of_all_pairs_and_latents(device):
    """Forward keeps nothing of its size, nor of all pairs."""
    batch, latents, kept = 64, 8, []
    q = torch.randn(3, batch, latents, device=device).requires_grad_()
    z, mu, log_var = q

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        compat.pythae_beta_tcvae_loss(z, z, mu, log_var, z, 1000, impl=KERNELS)
        compat.DisvaeBtcvaeLoss(1000, is_mss=False, rec_dist="gaussian", impl=KERNELS)(
            z, z, (mu, log_var), True, None, z
        )
    assert max(kept) <= 3 * batch * latents


def test_counts_without_compiling_anew():
    counter = CompileCounterWithBackend("eager")
    torch.compiler.reset()
    loss = compat.AntixKBetaTCVAELoss(anneal_steps=3)
    tensors = ramps(1, 2, 3)
    compiled = torch.compile(lambda *t: loss(*t, M_N=0.1)["loss"], backend=counter, fullgraph=True)
    again = compat.AntixKBetaTCVAELoss(anneal_steps=3)
    for _ in range(5):
        torch.testing.assert_close(compiled(*tensors), again(*tensors, M_N=0.1)["loss"])
    assert counter.frame_count == 1


IMAGE, LATENT = torch.rand(4, 6), torch.rand(4, 2)
LOSSES = {
    "rtqichen_tcvae_elbo": lambda mu=LATENT, z=LATENT, x=IMAGE, size=9: compat.rtqichen_tcvae_elbo(
        x, IMAGE, z, torch.stack([mu, mu], -1), size, beta=2.0, mss=True
    ),
    "pythae_beta_tcvae_loss": lambda mu=LATENT, z=LATENT, x=IMAGE, size=9: (
        compat.pythae_beta_tcvae_loss(IMAGE, x, mu, mu, z, size)
    ),
    "DisvaeBtcvaeLoss": lambda mu=LATENT, z=LATENT, x=IMAGE, size=9: compat.DisvaeBtcvaeLoss(size)(
        x, IMAGE, (mu, mu), True, None, z
    ),
    "AntixKBetaTCVAELoss": lambda mu=LATENT, z=LATENT, x=IMAGE, size=9: (
        compat.AntixKBetaTCVAELoss()(IMAGE, x, mu, mu, z, M_N=4 / size)
    ),
    "pythae_vamp_loss": lambda mu=LATENT, z=LATENT, x=IMAGE, size=9: compat.pythae_vamp_loss(
        IMAGE, x, mu, mu, z, 1, prior_mu=LATENT, prior_log_var=LATENT
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_do_not_fit(name):
    for wrong in ({"mu": LATENT[:, :1]}, {"z": LATENT[:3]}, {"z": LATENT[:1]}, {"x": IMAGE[:3]}):
        with pytest.raises(ValueError, match=r"\(4, "):
            LOSSES[name](**wrong)
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got float"):
        LOSSES[name](z=0.5)


@pytest.mark.parametrize("name", [name for name in LOSSES if "vamp" not in name])
def test_sizes_that_do_not_fit(name):
    with pytest.raises(ValueError, match=r"(dataset_size|n_data) must be at least 4|M_N must be"):
        LOSSES[name](size=3)
    assert torch.as_tensor(LOSSES[name](size=4)["loss"] if "Antix" in name else 0.0).isfinite()


def test_other_bad_arguments():
    one = IMAGE[:1], IMAGE[:1], LATENT[:1], LATENT[:1], LATENT[:1]
    with pytest.raises(ValueError, match="use_mss needs a batch of at least 2"):
        compat.pythae_beta_tcvae_loss(*one, 9)
    assert compat.pythae_beta_tcvae_loss(*one, 9, use_mss=False)[0].isfinite()
    with pytest.raises(ValueError, match="'bernoulli', 'gaussian', 'laplace'"):
        compat.DisvaeBtcvaeLoss(9, rec_dist="bce")
    with pytest.raises(TypeError, match=r"latent_sample must be a .*Tensor, got NoneType"):
        compat.DisvaeBtcvaeLoss(9)(IMAGE, IMAGE, (LATENT, LATENT), True, None)
    with pytest.raises(ValueError, match="data and recon_batch of one shape"):
        compat.DisvaeBtcvaeLoss(9, rec_dist="laplace")(
            IMAGE, IMAGE[:, :1], (LATENT, LATENT), True, None, LATENT
        )
    five = IMAGE, IMAGE, LATENT, LATENT, LATENT
    for wrong, match in ((0.0, "M_N must be positive"), (1.5, "M_N must be a number in")):
        with pytest.raises(ValueError, match=match):
            compat.AntixKBetaTCVAELoss()(*five, M_N=wrong)
    with pytest.raises(TypeError, match="M_N"):
        compat.AntixKBetaTCVAELoss()(*five)
    with pytest.raises(ValueError, match=r"z_params \[B, D, 2\], got .*z_params \(4, 2\)"):
        compat.rtqichen_tcvae_elbo(IMAGE, IMAGE, LATENT, LATENT, 9)
    with pytest.raises(ValueError, match=r"prior_mu \(3, 1\)"):
        compat.pythae_vamp_loss(*five, 1, prior_mu=LATENT[:3, :1], prior_log_var=LATENT[:3, :1])
