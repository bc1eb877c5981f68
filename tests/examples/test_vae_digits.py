"""examples/vae_digits.py: implementations train alike, runs resume, options are refused."""

import re

import pytest
import torch

from fused_elbo.estimators.reference import noise, reference
from helpers.machine import KERNELS
from helpers.scripts import is_picture, load, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def vae_digits():
    return load("vae_digits")


@pytest.fixture
def kernel_noise(monkeypatch):
    """Let the reference draw the kernels' noise; ``shift`` makes it the noise of other seeds."""

    def patch(shift=0):
        def standard_normal(shape, like, generator=None):
            seed = int(noise.draw_seed(like.device, generator)) ^ shift
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
    before, kernels = trained(vae_digits, KERNELS, device)
    kernel_noise()
    _, same = trained(vae_digits, "reference", device)
    kernel_noise(shift=1)
    _, other = trained(vae_digits, "reference", device)

    assert (kernels - same).abs().max() <= tolerance
    assert (kernels - before).abs().max() > 0.1
    assert (kernels - other).abs().max() > 0.01


def test_training_beats_independent_pixels(vae_digits):
    """Ten seeds gain 2.45 to 2.76 nats per image in ten epochs. Half of that is asked for."""
    train, test = vae_digits.load_digits_binary()
    torch.manual_seed(0)
    *_, elbo = vae_digits.fit(vae_digits.VAE(), train, test, epochs=10)
    assert elbo > vae_digits.pixel_baseline(train, test) + 1.2


@pytest.mark.parametrize("impl", [KERNELS, "reference"])
def test_measuring_draws_noise_of_its_own(vae_digits, impl, device):
    """The same each time, and not from training's, which goes on as if nothing had happened."""
    images = vae_digits.load_digits_binary()[1][:8].to(device)
    model = vae_digits.VAE(latents=2, hidden=4).to(device)
    get_state, _ = vae_digits.random_state(device)
    state = get_state()
    elbos = [vae_digits.test_elbo(model, images, 2, impl) for _ in range(2)]
    bounds = [vae_digits.test_bound(model, images, 2, impl, None) for _ in range(2)]
    assert torch.equal(get_state(), state)
    assert elbos[0] == elbos[1]
    assert bounds[0] == bounds[1]


def test_digits_are_binary_and_always_the_same(vae_digits):
    train, test = vae_digits.load_digits_binary()
    assert len(train) + len(test) == 1797
    assert set(train.unique().tolist()) == set(test.unique().tolist()) == {0.0, 1.0}
    torch.manual_seed(1)
    again = vae_digits.load_digits_binary()
    assert torch.equal(train, again[0])
    assert torch.equal(test, again[1])


def run_vae(*arguments, **environment):
    return run("vae_digits", "--device", "cpu", *arguments, **environment)


def test_script_trains_and_draws_with_the_kernels(tmp_path):
    options = ["--impl", "triton", "--epochs", "1", "--batch", "256", "--out", str(tmp_path)]
    result = run_vae(*options, "--bounds", "1", "3", TRITON_INTERPRET="1")
    assert result.returncode == 0, result.stderr
    assert "test ELBO" in result.stdout
    assert "independent pixels" in result.stdout
    assert is_picture(tmp_path / "vae_digits.png")


def test_script_trains_and_draws_with_the_reference(vae_digits, tmp_path, capsys):
    options = ["--impl", "reference", "--epochs", "1", "--bounds", "1", "3"]
    vae_digits.main([*options, "--device", "cpu", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "test ELBO" in out
    assert "independent pixels" in out
    assert is_picture(tmp_path / "vae_digits.png")


def test_script_trains_by_an_estimator_and_its_bounds_are_ordered(vae_digits, tmp_path, capsys):
    """L_1 <= L_50 <= L_5000 in expectation; after two epochs they are nats apart, not noise.

    The noise of L_1's mean over 360 images is about 0.2 nats, of the others less than 0.05.
    """
    options = ["--estimator", "iwae", "--epochs", "2", "--device", "cpu"]
    vae_digits.main([*options, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    found = re.findall(r"bound, K = ([\d,]+) +│ +(-[\d.]+)", printed)
    bounds = {int(samples.replace(",", "")): float(bound) for samples, bound in found}
    assert list(bounds) == [1, 50, 5000]
    assert bounds[1] - 0.5 <= bounds[50] <= bounds[5000] + 0.1
    assert -30 < bounds[5000] < -20
    reported = re.search(
        r"\(in expectation\) +(-[\d.]+) \+- 0\.\d+ over the weights, K = 5000", printed
    )
    assert float(reported[1]) == pytest.approx(bounds[5000], abs=0.006)
    assert is_picture(tmp_path / "vae_digits.png")


def test_every_estimator_on_offer_takes_a_step(vae_digits):
    images = vae_digits.load_digits_binary()[0][:8]
    model = vae_digits.VAE(latents=2, hidden=4)
    for name in vae_digits.TRAINING:
        model.zero_grad()
        vae_digits.negative_bound(model, images, estimator=name, samples=2).backward()
        for parameter in model.parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


COUNTS = "--epochs", "--batch", "--latents", "--samples", "--bounds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", "4"), "--samples needs --estimator"),
        (("--estimator", "vimco", "--samples", "1"), "vimco needs num_samples >= 2"),
        (("--estimator", "cubo"), "invalid choice: 'cubo'"),
        (("--ddp",), "--ddp needs torchrun"),
        *(((option, "0"), f"argument {option}: must be at least 1, got 0") for option in COUNTS),
    ],
)
def test_script_refuses_what_cannot_work(vae_digits, capsys, options, message):
    with pytest.raises(SystemExit):
        vae_digits.parse(options)
    assert message in capsys.readouterr().err


def test_script_refuses_shares_that_are_not_even(vae_digits, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SystemExit):
        vae_digits.parse(["--ddp"])
    assert "--batch 64 cannot be shared evenly by 3 processes" in capsys.readouterr().err


def test_script_refuses_processes_that_would_not_share(vae_digits, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        vae_digits.parse([])
    assert "2 processes without --ddp" in capsys.readouterr().err


def test_script_goes_on_from_a_checkpoint(vae_digits, tmp_path):
    """One epoch and another are two epochs, to the last bit; other settings are refused."""
    fixed = ["--device", "cpu", "--batch", "256", "--bounds", "1", "--out", str(tmp_path)]

    def run(epochs, name, *options):
        path = tmp_path / name
        vae_digits.main([*fixed, "--epochs", epochs, "--checkpoint", str(path), *options])
        return torch.load(path)

    whole = run("2", "whole.pt")
    run("1", "resumed.pt")
    torch.rand(3)
    resumed = run("2", "resumed.pt")
    assert whole["elbos"] == resumed["elbos"]
    for name, parameter in whole["model"].items():
        assert torch.equal(parameter, resumed["model"][name])
    with pytest.raises(SystemExit, match=r"resumed\.pt is of .*'lr': 0\.002"):
        run("3", "resumed.pt", "--lr", "0.1")
    with pytest.raises(SystemExit, match=r"resumed\.pt is of .*'impl': 'auto'"):
        run("3", "resumed.pt", "--impl", "reference")


def test_a_checkpoint_of_another_kind_of_device_is_refused(vae_digits):
    """Its noise is another; which GPU it was does not matter."""
    args = vae_digits.parse(["--device", "cpu"])
    found = []
    for args.device in ("cpu", "cuda:0", "cuda:1"):
        found.append(vae_digits.settings(args))
    assert found[0] != found[1] == found[2]


def test_the_state_of_noise_is_that_of_the_device_that_was_asked_for(vae_digits, monkeypatch):
    """Not of the current one. Without a GPU: torch is asked for the right state."""
    states = {"cuda:0": 0, "cuda:1": 1}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda:0": states[device])
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device="cuda:0": states.update({device: state})
    )
    get_state, set_state = vae_digits.random_state("cuda:1")
    assert get_state() == 1
    set_state(2)
    assert states == {"cuda:0": 0, "cuda:1": 2}


def test_a_rank_chooses_its_gpu_before_it_uses_one(vae_digits, capsys, monkeypatch):
    def set_device(device):
        raise RuntimeError(f"chose {device}")  # parse ends here, if nothing was used before

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        vae_digits.parse(["--ddp", "--device", "cuda"])
    assert "chose cuda:1" in capsys.readouterr().err


def test_a_checkpoint_is_whole_or_the_one_before(vae_digits, tmp_path, monkeypatch):
    """A run that ends while it saves leaves what it saved last."""
    path = tmp_path / "run.pt"
    args = vae_digits.parse(["--device", "cpu", "--checkpoint", str(path)])
    model = vae_digits.VAE(latents=2, hidden=4)
    optimizer = torch.optim.Adam(model.parameters())
    vae_digits.save(args, model, optimizer, [-30.0])

    def save_a_half(run, path):
        path.write_bytes(b"half of a run")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_a_half)
    with pytest.raises(KeyboardInterrupt):
        vae_digits.save(args, model, optimizer, [-30.0, -29.0])
    assert vae_digits.resume(args, model, optimizer) == [-30.0]


def test_script_says_in_a_line_that_kernels_need_a_gpu(tmp_path):
    result = run_vae("--impl", "triton", "--out", str(tmp_path / "out"), TRITON_INTERPRET="0")
    assert result.returncode == 2
    assert "error: impl='triton' needs CUDA tensors" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_script_has_help(vae_digits, capsys):
    with pytest.raises(SystemExit) as end:
        vae_digits.parse(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    options = "impl estimator samples bounds epochs latents batch lr seed device ddp checkpoint out"
    for option in options.split():
        assert f"--{option}" in out
