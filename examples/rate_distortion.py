"""The rate-distortion curve of a VAE on handwritten digits: beta by beta.

The autoencoder and the digits of vae_digits.py, trained on -log p(x|z) + beta KL for a sweep of
beta, by Adam and by SGD with momentum. The KL is the rate, what z says of an image; -log p(x|z) is
the distortion, what z leaves unsaid. The ELBO is beta = 1. Half a minute on one core of a CPU:

    python examples/rate_distortion.py
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from vae_digits import VAE, load_digits_binary, positive_int, show_images, train_step

from fused_elbo import bernoulli_nll, elbo_loss, rsample_kl
from fused_elbo.estimators.diagnostics import active_units

BETAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
OPTIMIZERS = {
    "Adam": partial(torch.optim.Adam, lr=4e-3),
    "SGD": partial(torch.optim.SGD, lr=2e-2, momentum=0.9),
}
# Okabe & Ito's colours, which colour-blind readers can tell apart.
LOOKS = {
    "Adam": {"color": "#0072B2", "marker": "o"},
    "SGD": {"color": "#D55E00", "marker": "s", "linestyle": "--", "markerfacecolor": "none"},
}
NAMES = {"Adam": "Adam", "SGD": "SGD with momentum"}
TEST_SAMPLES = 10  # of z for each image


class Point(NamedTuple):
    """Where a trained model is on the curve, of the test images."""

    rate: float  # KL(q(z|x) || p(z)), nats per image
    distortion: float  # -log p(x|z), nats per image
    active: int  # latents in use


def beta_loss(model, x, impl="auto", *, beta):
    """-log p(x|z) + beta KL in nats, the mean over the images, from one sample of z for each."""
    z, kl = rsample_kl(*model.encode(x), impl=impl)
    return elbo_loss(model.decode(z), x, kl=kl, beta=beta, impl=impl)


def fit(optimizer_name, beta, train, args):
    """A model trained for one beta: for all alike the same first weights, batches and noise."""
    torch.manual_seed(args.seed)
    model = VAE(args.latents, args.hidden).to(train.device)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    loss = partial(beta_loss, beta=beta)
    for _ in range(args.epochs):
        for index in torch.randperm(len(train), device=train.device).split(args.batch):
            train_step(model, optimizer, train[index], args.impl, loss)
        schedule.step()
    return model


@torch.no_grad()
def measure(model, x, impl="auto"):
    """The model's point, with the same noise for every model."""
    generator = torch.Generator(x.device).manual_seed(0)
    mu, logvar = model.encode(x)
    repeated = x.repeat(TEST_SAMPLES, 1)
    q = (t.repeat(TEST_SAMPLES, 1) for t in (mu, logvar))
    z, kl = rsample_kl(*q, generator=generator, impl=impl)
    nll = bernoulli_nll(model.decode(z), repeated, impl=impl)
    return Point(kl.mean().item(), nll.mean().item(), active_units(mu).sum().item())


def sweep(args, train, test, after_model):
    """{optimizer: {beta: Point}}, and Adam's models by beta; ``after_model`` tells progress."""
    curves = {name: {} for name in OPTIMIZERS}
    models = {}
    for name, curve in curves.items():
        for beta in args.betas:
            model = fit(name, beta, train, args)
            curve[beta] = measure(model, test, args.impl)
            models.setdefault(beta, model)
            after_model(name, beta, curve[beta])
    return curves, models


def slopes(curve):
    """{beta: slope of the curve there}, from the two neighbours: in theory -beta."""
    betas = sorted(curve)
    found = {}
    for below, beta, above in zip(betas, betas[1:], betas[2:], strict=False):
        rise = curve[above].distortion - curve[below].distortion
        found[beta] = rise / (curve[above].rate - curve[below].rate)
    return found


def summary(curves):
    """The table at the end: a section for each optimizer."""
    table = Table(title="test images, nats per image", title_justify="left")
    for column in ("", "beta", "KL", "- log p(x|z)", "- ELBO", "active", "slope"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, curve in curves.items():
        steepness = slopes(curve)
        for beta, (rate, distortion, active) in sorted(curve.items()):
            nats = (f"{value:.2f}" for value in (rate, distortion, rate + distortion))
            slope = f"{steepness[beta]:.2f}" if beta in steepness else ""
            table.add_row(name, f"{beta:g}", *nats, f"{active}", slope)
        table.add_section()
    return table


@torch.no_grad()
def draw(curves, models, test, path, columns=10):
    """One figure: the curve and the active units along it; images at its ends and its middle."""
    figure = Figure(figsize=(12, 7.6), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    plane, units = left.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name, curve in curves.items():
        rates, distortions, active = zip(*(curve[beta] for beta in sorted(curve)), strict=True)
        plane.plot(rates, distortions, label=NAMES[name], **LOOKS[name])
        units.plot(rates, active, **LOOKS[name])
    first = curves["Adam"]
    for beta, (rate, distortion, _) in first.items():
        offset = (5, 6) if beta > 0.3 else (-18, -15)  # there the curve is flat
        place = {"xytext": offset, "textcoords": "offset points", "fontsize": 9}
        plane.annotate(f"β = {beta:g}", (rate, distortion), **place)
    if 1.0 in first:
        show_tangent(plane, first[1.0])
    plane.set(ylabel="distortion: $-\\log p(x|z)$, nats per test image")
    plane.legend()
    units.set(xlabel="rate: KL(q‖p), nats per test image", ylabel="active latents")
    for axes in (plane, units):
        axes.grid(alpha=0.3)

    shown = [min(models), 1.0 if 1.0 in models else sorted(models)[len(models) // 2], max(models)]
    rows = right.subplots(1 + len(shown), 1, height_ratios=(1, 3, 3, 3))
    x = test[:columns]
    show_images(rows[0], x, columns, "test images")
    for axes, beta in zip(rows[1:], shown, strict=True):
        model = models[beta]
        z = torch.randn(2 * columns, model.latents, generator=torch.Generator().manual_seed(0))
        images = model.decode(torch.cat((model.encode(x)[0], z.to(x.device)))).sigmoid()
        title = f"β = {beta:g}: reconstructions; samples from the prior (two rows)"
        show_images(axes, images, columns, title)
    figure.savefig(path)


def show_tangent(axes, point):
    """The points of one ELBO: a line of slope -1, which the curve only touches, at beta = 1."""
    total = point.rate + point.distortion
    reach = torch.tensor([-4.0, 5.0])
    ends = (point.rate + reach).clamp(min=0.0)
    label = f"ELBO = {-total:.2f}: slope -1"
    axes.plot(ends, total - ends, color="black", linewidth=1, label=label)


def positive_float(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Sweep beta, for a rate-distortion curve.")
    parser.add_argument("--betas", nargs="+", type=positive_float, default=BETAS, metavar="BETA")
    parser.add_argument("--epochs", type=positive_int, default=60)
    parser.add_argument("--batch", type=positive_int, default=64)
    parser.add_argument("--latents", type=positive_int, default=8)
    parser.add_argument("--hidden", type=positive_int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of training")
    parser.add_argument("--impl", choices=("auto", "triton", "numba", "reference"), default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    train, test = (images.to(args.device) for images in load_digits_binary())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("training", total=len(OPTIMIZERS) * len(args.betas))

        def after_model(name, beta, point):
            found = f"KL {point.rate:5.2f}   -log p(x|z) {point.distortion:5.2f}"
            progress.console.print(f"{name:4} beta {beta:4g}   {found}   {point.active} active")
            progress.advance(task)

        curves, models = sweep(args, train, test, after_model)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rate_distortion.png"
    draw(curves, models, test, path)
    console = Console()
    console.print(summary(curves))
    console.print(f"picture in {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
