"""An AutoencoderKL of diffusers, before and after one assigned name.

Latent diffusion's autoencoder, small, with random weights at first, learns the digits of
scikit-learn, enlarged to 32 x 32 pixels. The loss is that of CompVis' training code without its
perceptual and adversarial terms: absolute errors and 1e-6 of the KL, summed over an image. "Before"
is diffusers as it is installed; "after" is the same program after

    autoencoder_kl.DiagonalGaussianDistribution = fused_elbo.compat.DiagonalGaussianDistribution

It needs diffusers, which no extra of fused_elbo installs:

    pip install diffusers
    python examples/latent_diffusion.py
    python examples/latent_diffusion.py --steps 20 --rounds 10      # a first look

It shows how far apart the curves of loss and KL are, and how far a relative error of eps takes the
original, for Adam magnifies rounding; then time and peak memory of a step, and of the
posterior alone, forward and backward, for parameters of the network's size and of a usual one.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from migration import change, describe, interleaved, peak_bytes, rounded
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from vae_digits import positive_int

from fused_elbo.compat import DiagonalGaussianDistribution

KL_WEIGHT = 1e-6
NETWORK = {
    "in_channels": 1, "out_channels": 1, "latent_channels": 4, "norm_num_groups": 8,
    "block_out_channels": (16, 32), "down_block_types": 2 * ("DownEncoderBlock2D",),
    "up_block_types": 2 * ("UpDecoderBlock2D",),
}  # fmt: skip
LARGE = 4, 8, 64, 64  # parameters of four images of 512 x 512 pixels in Stable Diffusion


def load_diffusers():
    """The module whose name is assigned to, and the version of diffusers."""
    try:
        import diffusers
        from diffusers.models.autoencoders import autoencoder_kl
    except ImportError as error:
        about = "latent_diffusion.py needs diffusers: pip install diffusers"
        raise SystemExit(f"{about} ({' '.join(str(error).split())})") from None
    return autoencoder_kl, diffusers.__version__


def load_images():
    """The digits, 32 x 32 pixels in [-1, 1]."""
    digits = torch.from_numpy(load_digits().images).float() / 8 - 1
    return F.interpolate(digits.unsqueeze(1), scale_factor=4)


def start(module, args, dtype=torch.float32):
    """Seed everything; the model, its optimiser, and the generator of the noise."""
    torch.manual_seed(args.seed)
    model = module.AutoencoderKL(**NETWORK).to(args.device).type(dtype)
    generator = torch.Generator(args.device).manual_seed(args.seed)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), generator


def train_step(module, posterior, model, optimizer, generator, x):
    """The loss and its KL before the step, in nats an image."""
    module.DiagonalGaussianDistribution = posterior  # the one line
    q = model.encode(x).latent_dist
    z = q.sample(generator=generator)
    kl = q.kl().sum() / len(x)
    errors = F.l1_loss(model.decode(z).sample, x, reduction="sum") / len(x)
    loss = errors + KL_WEIGHT * kl
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()  # so that the next step's peak has the gradients in it
    return loss.item(), kl.item()


def train(module, posterior, images, args, dtype):
    """The curves of loss and KL. The seed fixes weights, batches and noise."""
    started, curves = start(module, args, dtype), {"loss": [], "kl": []}
    for _ in range(args.steps):
        x = images[torch.randint(len(images), (args.batch,))].to(args.device, dtype)
        values = train_step(module, posterior, *started, x)
        for curve, value in zip(curves.values(), values, strict=True):
            curve.append(value)
    return curves


def nudged(original):
    """The original with its parameters off by eps, relative: what rounding alone does."""
    return lambda h: original(h + torch.finfo(h.dtype).eps * h)


def apart(before, after):
    """The largest difference of a step in either curve, relative to its value."""
    pairs = {name: zip(before[name], after[name], strict=True) for name in before}
    return {name: max(abs(b - a) / abs(b) for b, a in steps) for name, steps in pairs.items()}


def compare(module, classes, images, args, dtype):
    """The curves before and after, how far apart they are, and how far rounding takes them."""
    runs = classes[0], nudged(classes[0]), classes[1]
    before, other, after = (train(module, posterior, images, args, dtype) for posterior in runs)
    name, found = str(dtype).removeprefix("torch."), {"before": before, "after": after}
    distances = {"difference": apart(before, after), "rounding": apart(before, other)}
    return {"dtype": name} | found | distances


def posterior_alone(posterior, parameters, gradients, generator):
    """A sample and its KL; from their gradients that of the parameters."""
    q = posterior(parameters)
    outputs = q.sample(generator=generator), q.kl()
    return torch.autograd.grad(outputs, parameters, gradients)


def costs(module, classes, images, args):
    """Time and peak memory, before and after, in turns: of a step, and of posteriors alone."""
    x = images[: args.batch].to(args.device)
    calls = {"step": [partial(train_step, module, c, *start(module, args), x=x) for c in classes]}
    model, _, generator = start(module, args)
    small = model.encode(x).latent_dist.parameters.detach()
    for parameters in small, torch.randn(LARGE, device=args.device):
        half = parameters.chunk(2, 1)[0]
        given = parameters.requires_grad_(), (torch.ones_like(half), half.new_ones(len(half)))
        shape = "x".join(map(str, parameters.shape))
        calls[shape] = [partial(posterior_alone, c, *given, generator) for c in classes]
    out = {}
    for what, pair in calls.items():
        for call in 3 * pair:  # compiles, and has Adam's state in place
            call()
        before, after = (peak_bytes(call, args.device) for call in pair)
        times = interleaved(*pair, args.rounds, args.device)
        out[what] = {"before_bytes": before, "after_bytes": after, **times}
    return out


def costs_table(costs):
    table = Table("of", "time, ms", "speed-up", "quartiles", "peak, kB")
    for what, row in costs.items():
        low, high = row["quartiles"]
        times, peaks = change(row, "s", 1e3, 2), change(row, "bytes", 1e-3, 0)
        table.add_row(what, times, f"{row['speed_up']:.2f}", f"{low:.2f} to {high:.2f}", peaks)
    return table


def parse(argv=None):
    parser = argparse.ArgumentParser(description="An AutoencoderKL before and after one line.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--steps", type=int, default=100, help="default: 100")
    parser.add_argument("--batch", type=positive_int, default=8, help="default: 8")
    parser.add_argument("--rounds", type=int, default=50, help="of the timings (default: 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default=torch.device(device))
    parser.add_argument("--json", type=Path, default=Path("latent_diffusion.json"), metavar="FILE")
    args = parser.parse_args(argv)
    if min(args.steps, args.rounds) < 2:
        parser.error("--steps and --rounds must be at least 2")
    try:  # tells now, in one line, whether the device is there
        DiagonalGaussianDistribution(torch.zeros(1, 2, 1, 1, device=args.device)).sample()
    except (RuntimeError, AssertionError) as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    module, version = load_diffusers()
    torch.set_num_threads(1)  # a network this small takes longer when threads share it
    console, images, curves = Console(), load_images(), []
    machine = f"{describe(args.device)}, diffusers {version}"
    console.print(machine, soft_wrap=True)
    classes = module.DiagonalGaussianDistribution, DiagonalGaussianDistribution
    for dtype in torch.float64, torch.float32:
        pair = compare(module, classes, images, args, dtype)
        first, *_, last = pair["before"]["loss"]
        console.print(
            f"{pair['dtype']}: loss {first:.2f} to {last:.2f} in {args.steps} steps, at most "
            f"{pair['difference']['loss']:.1e} apart in a step (relative); by rounding alone "
            f"{pair['rounding']['loss']:.1e}",
            soft_wrap=True,
        )
        curves.append(pair)
    measured = costs(module, classes, images, args)
    settings = {name: vars(args)[name] for name in ("steps", "batch", "rounds", "seed")}
    record = {"machine": machine, "settings": settings, "curves": curves, "costs": measured}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(rounded(record)) + "\n", encoding="utf-8", newline="\n")
    console.print(costs_table(measured))
    console.print(f"numbers in {args.json}", soft_wrap=True)


if __name__ == "__main__":
    main()
