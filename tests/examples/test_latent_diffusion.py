"""examples/latent_diffusion.py, on a stand-in for diffusers with its interface."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fused_elbo import compat
from helpers.originals import OriginalDiagonalGaussian
from helpers.scripts import EXAMPLES

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


class Original(OriginalDiagonalGaussian):
    def __init__(self, parameters, deterministic=False):
        super().__init__(parameters, deterministic)
        self.parameters = parameters


class AutoencoderKL(nn.Module):
    """Looks its posterior up when it encodes, as diffusers does."""

    def __init__(self, in_channels, out_channels, latent_channels, **_):
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, 2 * latent_channels, 8, stride=8)
        self.decoder = nn.ConvTranspose2d(latent_channels, out_channels, 8, stride=8)

    def encode(self, x):
        module = sys.modules["diffusers.models.autoencoders"].autoencoder_kl
        return SimpleNamespace(latent_dist=module.DiagonalGaussianDistribution(self.encoder(x)))

    def decode(self, z):
        return SimpleNamespace(sample=self.decoder(z))


@pytest.fixture
def module(monkeypatch):
    """The stand-in of autoencoder_kl, where the script will import it."""
    for name in ("diffusers", "diffusers.models", "diffusers.models.autoencoders"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["diffusers"].__version__ = "stand-in"
    found = ModuleType("autoencoder_kl")
    found.AutoencoderKL, found.DiagonalGaussianDistribution = AutoencoderKL, Original
    sys.modules["diffusers.models.autoencoders"].autoencoder_kl = found
    return found


@pytest.fixture(scope="module")
def latent_diffusion():
    """The script as a module; it imports its neighbours, as a script can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        import latent_diffusion

        yield latent_diffusion


def compare(latent_diffusion, module, after, dtype):
    args = SimpleNamespace(seed=1, steps=30, batch=4, device=CPU)
    images = latent_diffusion.load_images()[:50]
    return latent_diffusion.compare(module, (Original, after), images, args, dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=str
)
def test_curves_coincide_to_rounding(latent_diffusion, module, dtype, tolerance):
    after = compat.DiagonalGaussianDistribution
    pair = compare(latent_diffusion, module, after, dtype)
    assert module.DiagonalGaussianDistribution is after  # it was ours that trained last
    assert max(pair["difference"].values()) < tolerance
    assert 0 < min(pair["rounding"].values()) <= max(pair["rounding"].values()) < tolerance
    assert pair["after"]["loss"][-1] < 0.95 * pair["after"]["loss"][0]  # it does train


def test_another_kl_and_another_sample_are_seen(latent_diffusion, module):
    class WrongKL(Original):
        def kl(self, other=None):
            return 1.001 * super().kl(other)

    class WrongSample(Original):
        def sample(self, **options):
            return 1.001 * super().sample(**options)

    found = compare(latent_diffusion, module, WrongKL, torch.float64)["difference"]
    assert found["kl"] == pytest.approx(1e-3, rel=1e-2)
    found = compare(latent_diffusion, module, WrongSample, torch.float64)["difference"]
    assert found["loss"] > 1e-6


def test_images_are_the_digits_enlarged(latent_diffusion):
    images = latent_diffusion.load_images()
    assert images.shape == (1797, 1, 32, 32)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(images[:, :, ::4, ::4], images[:, :, 3::4, 3::4])


def test_script_measures_and_writes(latent_diffusion, module, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latent_diffusion, "LARGE", (2, 8, 8, 8))
    path = tmp_path / "new" / "numbers.json"
    options = ["--steps", "2", "--batch", "3", "--rounds", "2", "--seed", "5", "--device", "cpu"]
    latent_diffusion.main([*options, "--json", str(path)])
    out = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert "diffusers stand-in" in found["machine"]
    assert found["settings"] == {"steps": 2, "batch": 3, "rounds": 2, "seed": 5}
    assert [pair["dtype"] for pair in found["curves"]] == ["float64", "float32"]
    for pair in found["curves"]:
        assert set(pair["difference"]) == set(pair["rounding"]) == {"loss", "kl"}
        curves = [pair[when][curve] for when in ("before", "after") for curve in ("loss", "kl")]
        assert {len(curve) for curve in curves} == {2}
        assert f"{pair['dtype']}: loss {pair['before']['loss'][0]:.2f} to" in out
        assert f"{pair['difference']['loss']:.1e} apart" in out
        assert f"by rounding alone {pair['rounding']['loss']:.1e}" in out
    assert list(found["costs"]) == ["step", "3x8x4x4", "2x8x8x8"]
    for cost in found["costs"].values():
        assert {"before_s", "after_s", "speed_up", "quartiles"} < set(cost)
        assert 0 < cost["after_bytes"] < cost["before_bytes"]
        assert f"{cost['before_s'] * 1e3:.2f}" in out


def test_without_diffusers_one_line_says_what_to_install(latent_diffusion, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(SystemExit, match="needs diffusers: pip install diffusers") as error:
        latent_diffusion.main(["--device", "cpu"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "1"), "--steps and --rounds must be at least 2"),
        (("--rounds", "1"), "--steps and --rounds must be at least 2"),
        (("--batch", "0"), "argument --batch: must be at least 1, got 0"),
        (("--device", "cuda:99"), "CUDA"),
    ],
)
def test_script_refuses_what_cannot_work(latent_diffusion, capsys, options, message):
    with pytest.raises(SystemExit):
        latent_diffusion.parse(options)
    assert message in capsys.readouterr().err


def test_committed_curves_are_rounding_apart():
    """Adam magnifies rounding in a real AutoencoderKL; the drop-in adds no more than that."""
    path = ROOT / "results" / "cpu-amd-epyc" / "latent_diffusion.json"
    for pair in json.loads(path.read_text())["curves"]:
        eps = torch.finfo(getattr(torch, pair["dtype"])).eps
        early = zip(pair["before"]["loss"][:20], pair["after"]["loss"][:20], strict=True)
        assert max(abs(b - a) / b for b, a in early) < max(10 * eps, 1e-8)  # written to 9 digits
        for curve, difference in pair["difference"].items():
            assert difference < 5 * pair["rounding"][curve]
