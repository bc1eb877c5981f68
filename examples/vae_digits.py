"""A variational autoencoder on handwritten digits, trained with fused_elbo.

The data are the 1,797 images of 8 x 8 pixels that scikit-learn carries along. Ten seconds
on one core of a CPU; on a GPU the same code runs the fused kernels:

    python examples/vae_digits.py
"""

import argparse
from pathlib import Path

import torch
from fused_elbo import bernoulli_nll, elbo_loss, rsample_kl
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from torch import nn

PIXELS = 64
TEST_IMAGES = 360


def load_digits_binary(seed=0):
    """Binary images for training [1437, 64] and for testing [360, 64].

    A pixel counts the ink, 0 to 16, in a 4 x 4 block of the scanned digit. Drawing it with
    probability count / 16 picks one point of the block at random. The seed fixes the
    draw and the split, so ELBOs of different runs are about the same images.
    """
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.from_numpy(load_digits().data).float() / 16
    images = torch.bernoulli(probabilities, generator=generator)
    images = images[torch.randperm(len(images), generator=generator)]
    return images[:-TEST_IMAGES], images[-TEST_IMAGES:]


class VAE(nn.Module):
    """q(z | x) is a diagonal Gaussian, p(x | z) a Bernoulli for each pixel."""

    def __init__(self, latents=8, hidden=256):
        super().__init__()
        self.latents = latents
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, PIXELS)
        )

    def encode(self, x):
        """Mean and log variance of q(z | x), each [B, latents]."""
        return self.encoder(x).chunk(2, dim=-1)

    def decode(self, z):
        """Logits of p(x | z), [B, 64]."""
        return self.decoder(z)


def negative_elbo(model, x, generator=None, impl="auto"):
    """-ELBO in nats, the mean over the images, from one sample of z for each."""
    mu, logvar = model.encode(x)
    z, kl = rsample_kl(mu, logvar, generator=generator, impl=impl)
    return elbo_loss(model.decode(z), x, kl=kl, impl=impl)


def train_step(model, optimizer, x, impl="auto"):
    """One step on a batch; returns the loss before it."""
    loss = negative_elbo(model, x, impl=impl)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def test_elbo(model, x, samples, impl):
    """The ELBO in nats per image, from several samples of z for each.

    The noise has a seed of its own: it is the same at every epoch, and measuring leaves the
    noise of training as it was.
    """
    generator = torch.Generator(x.device).manual_seed(0)
    return -negative_elbo(model, x.repeat(samples, 1), generator, impl).item()


def pixel_baseline(train, test):
    """Mean log-likelihood in nats per test image, if pixels were independent coins.

    A coin's probability is its pixel's mean over the training images, with one image of
    each colour added: a pixel that training never saw lit keeps a finite log-likelihood.
    """
    logits = ((train.sum(0) + 1) / (len(train) + 2)).logit()
    return -bernoulli_nll(logits.expand_as(test), test, impl="reference").mean().item()


def fit(model, train, test, epochs=50, batch=64, lr=2e-3, impl="auto"):
    """Train with Adam; yields the test ELBO after every epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for index in torch.randperm(len(train), device=train.device).split(batch):
            train_step(model, optimizer, train[index], impl)
        yield test_elbo(model, test, samples=10, impl=impl)


@torch.no_grad()
def draw(model, test, elbos, baseline, path, count=12):
    """One figure: reconstructions, samples from the prior, and the test ELBO by epoch."""
    x = test[:count]
    reconstructions = model.decode(model.encode(x)[0]).sigmoid()
    z = torch.randn(3 * count, model.latents, device=x.device)
    samples = model.decode(z).sigmoid()

    figure = Figure(figsize=(8, 6.6), dpi=100, layout="constrained")
    rows = figure.subplots(3, 1, height_ratios=(2, 3, 3.6))
    title = "test images (above) and their reconstructions, p(pixel is ink) (below)"
    show_images(rows[0], torch.cat((x, reconstructions)), count, title)
    show_images(rows[1], samples, count, "samples: z from the prior, then p(pixel is ink)")
    rows[2].plot(range(1, len(elbos) + 1), elbos, marker=".", label="VAE, test ELBO")
    rows[2].axhline(baseline, color="0.4", linestyle="--", label="independent pixels, test")
    rows[2].set(xlabel="epoch", ylabel="nats per image")
    rows[2].grid(alpha=0.3)
    rows[2].legend()
    figure.savefig(path)


def show_images(axes, images, columns, title):
    """Draw [N, 64] as a grid of 8 x 8 images, dark ink on white, thin grey lines between."""
    grid = nn.functional.pad(images.cpu().view(-1, columns, 8, 8), (1, 1, 1, 1), value=0.25)
    axes.imshow(grid.permute(0, 2, 1, 3).flatten(2).flatten(0, 1), cmap="Greys", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Train a VAE on handwritten digits.")
    cuda = torch.cuda.is_available()
    parser.add_argument("--impl", choices=("auto", "triton", "reference"), default="auto")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=Path("vae_digits"), help="folder to write to")
    args = parser.parse_args(argv)
    try:  # one sample tells now, in one line, whether --impl runs on --device
        rsample_kl(*torch.zeros(2, 1, 1, device=args.device), impl=args.impl)
    except (RuntimeError, AssertionError) as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    train, test = (images.to(args.device) for images in load_digits_binary())
    baseline = pixel_baseline(train, test)

    torch.manual_seed(args.seed)
    model = VAE(args.latents).to(args.device)
    elbos = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("training", total=args.epochs)
        for elbo in fit(model, train, test, args.epochs, args.batch, args.lr, args.impl):
            elbos.append(elbo)
            progress.console.print(f"epoch {len(elbos):3d}   test ELBO {elbo:7.2f} nats per image")
            progress.advance(task)

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "vae_digits.png"
    draw(model, test, elbos, baseline, path)
    print(f"test ELBO             {elbos[-1]:7.2f} nats per image")
    print(f"independent pixels    {baseline:7.2f} nats per image")
    print(f"pictures in {path}")


if __name__ == "__main__":
    main()
