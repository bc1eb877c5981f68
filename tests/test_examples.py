"""The example on real data: both implementations train alike, and training pays."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fused_elbo.estimators import noise, reference

SCRIPT = Path(__file__).parents[1] / "examples" / "vae_digits.py"


@pytest.fixture(scope="module")
def vae_digits():
    """The script as a module: examples/ is no package."""
    spec = importlib.util.spec_from_file_location("vae_digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread():
    """As the script has it: on a busy machine these small matrices take 10 x as long on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kernel_noise(monkeypatch):
    """Let the reference draw the kernels' noise; ``shift`` makes it the noise of other seeds."""
    from fused_elbo.kernels.noise import draw_seed

    def patch(shift=0):
        def standard_normal(shape, like, generator=None):
            seed = int(draw_seed(like.device, generator)) ^ shift
            return noise.stream(seed, 1, *shape)[0].to(like)

        monkeypatch.setattr(reference, "standard_normal", standard_normal)

    return patch


def trained(vae_digits, impl, device, steps=5):
    """The parameters in one vector, before and after a few steps on the first 100 digits."""
    images = vae_digits.load_digits_binary()[0][:100].to(device)
    torch.manual_seed(0)
    model = vae_digits.VAE(latents=5, hidden=16).to(device)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    # SGD is linear in the gradient. Adam divides by its size: where that is near 0, the last
    # bit of a gradient decides the sign of a whole step.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        vae_digits.train_step(model, optimizer, images[20 * step :][:20], impl)
    return before, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_kernels_and_reference_train_to_the_same_parameters(vae_digits, kernel_noise, device):
    """To float32 accuracy, from the same noise.

    On a CPU, over ten seeds, no parameter differs by more than 6e-8, the spacing of float32
    in [0.5, 1); the tolerance leaves room for a GPU's approximate logarithm and sine.
    Training moves a parameter by 0.26 or more, other noise by 0.08 or more.
    """
    tolerance = 1e-6
    before, kernels = trained(vae_digits, "triton", device)
    kernel_noise()
    _, same = trained(vae_digits, "reference", device)
    kernel_noise(shift=1)
    _, other = trained(vae_digits, "reference", device)

    assert (kernels - same).abs().max() <= tolerance
    assert (kernels - before).abs().max() > 0.1
    assert (kernels - other).abs().max() > 0.01


def test_training_beats_independent_pixels(vae_digits):
    """By 2.45 to 2.76 nats per image after ten epochs, over ten seeds; half of that is asked."""
    train, test = vae_digits.load_digits_binary()
    torch.manual_seed(0)
    *_, elbo = vae_digits.fit(vae_digits.VAE(), train, test, epochs=10)
    assert elbo > vae_digits.pixel_baseline(train, test) + 1.2


def test_digits_are_binary_and_always_the_same(vae_digits):
    train, test = vae_digits.load_digits_binary()
    assert len(train) + len(test) == 1797
    assert set(train.unique().tolist()) == set(test.unique().tolist()) == {0.0, 1.0}
    torch.manual_seed(1)
    again = vae_digits.load_digits_binary()
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])


def run(*arguments, **environment):
    """The script in a process of its own, on the CPU."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_script_trains_and_draws(tmp_path, impl):
    options = ["--impl", impl, "--epochs", "1", "--batch", "256", "--out", str(tmp_path)]
    result = run(*options, TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert "test ELBO" in result.stdout
    assert "independent pixels" in result.stdout
    picture = (tmp_path / "vae_digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_script_says_in_a_line_that_kernels_need_a_gpu(tmp_path):
    result = run("--impl", "triton", "--out", str(tmp_path / "out"), TRITON_INTERPRET="0")
    assert result.returncode == 2
    assert "error: impl='triton' needs CUDA tensors" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_script_has_help():
    result = run("--help")
    assert result.returncode == 0
    for option in ("impl", "epochs", "latents", "batch", "lr", "seed", "device", "out"):
        assert f"--{option}" in result.stdout
