"""One autoencoder, three ways to train it, and whether more samples of z help: K = 1, 8, 64.

The model and the 1,797 digits are those of vae_digits.py. A step with K samples is as short to
write as a step with one:

    z, log_ratio = rsample_log_ratio(*model.encode(x), 64, gradient="dreg")
    loss = iwae_loss(model.decode(z), x, log_ratio)

and the decoder's 64 outputs for an image are compared with the one x, which is not copied. The
three methods are the ELBO with K samples and the analytic KL, IWAE's bound of K samples, and
the same bound by the DReG gradient. At K = 1 IWAE is the ELBO with its KL by Monte Carlo, and
DReG is "sticking the landing", that ELBO without the score of q in its gradient.

    python examples/iwae_digits.py
    python examples/iwae_digits.py --epochs 20 --seeds 1      # a first look

The first takes four minutes of one core's time. For each seed all nine models start from the
same weights and see the same batches, and all are judged with the same noise. With --chunk-size
the decoder sees a few of the K samples at a time: the same loss and gradients in less memory (on
a CPU from another stream of noise, so that numbers differ as they do between seeds).
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from vae_digits import PIXELS, VAE, load_digits_binary, test_bound, train_step

from fused_elbo import (
    chunked_iwae_loss,
    elbo_loss,
    gaussian_rsample,
    iwae_loss,
    rsample_log_ratio,
)
from fused_elbo.estimators.diagnostics import active_units

METHODS = ("ELBO", "IWAE", "DReG")
GRADIENTS = {"IWAE": "total", "DReG": "dreg"}
COLORS = {"ELBO": "C0", "IWAE": "C1", "DReG": "C2"}
TEST_SAMPLES = 64  # of the test ELBO and of the effective sample size


def negative_elbo(model, x, samples, impl="auto"):
    """-ELBO in nats per image: the likelihood by K samples, the KL exactly."""
    mu, logvar = model.encode(x)
    z = gaussian_rsample(mu, logvar, samples, impl=impl)
    return elbo_loss(model.decode(z), x, mu, logvar, impl=impl)


def negative_iwae(model, x, samples, gradient, impl="auto"):
    """Minus IWAE's bound of K samples, in nats per image."""
    z, log_ratio = rsample_log_ratio(*model.encode(x), samples, gradient=gradient, impl=impl)
    return iwae_loss(model.decode(z), x, log_ratio, impl=impl)


def negative_iwae_in_chunks(model, x, samples, gradient, chunk_size, impl="auto"):
    """negative_iwae in the memory of a chunk, whatever K."""
    options = {"gradient": gradient, "chunk_size": chunk_size, "impl": impl}
    return chunked_iwae_loss(model.decode, x, *model.encode(x), samples, **options)


def loss_of(method, samples, chunk_size=None):
    """The function of (model, x, impl=...) to be minimised."""
    if method == "ELBO":
        return partial(negative_elbo, samples=samples)
    options = {"samples": samples, "gradient": GRADIENTS[method]}
    if chunk_size is None:
        return partial(negative_iwae, **options)
    return partial(negative_iwae_in_chunks, chunk_size=chunk_size, **options)


def fit(model, train, loss, seed, epochs=60, batch=50, lr=2e-3, impl="auto"):
    """Train with Adam; yields the mean loss of every epoch.

    The order of the images has a generator of its own: methods that draw different amounts
    of noise see the same batches.
    """
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        indices = torch.randperm(len(train), generator=order).to(train.device).split(batch)
        losses = [train_step(model, optimizer, train[index], impl, loss) for index in indices]
        yield torch.stack(losses).mean().item()


class Score(NamedTuple):
    """The measurements of a trained model, on the test images."""

    log_likelihood: float  # nats per image: the bound with many samples
    elbo: float  # nats per image
    gap: float  # of the two: what q loses
    ess: float  # effective sample size of TEST_SAMPLES importance weights, mean over images
    active: float  # latents in use
    seconds: float  # of training


@torch.no_grad()
def evaluate(model, test, bound_samples, seconds, impl="auto"):
    """The score of a model, with the same noise for every model."""
    generator = torch.Generator(test.device).manual_seed(0)
    mu, logvar = model.encode(test)
    z, log_ratio = rsample_log_ratio(mu, logvar, TEST_SAMPLES, generator=generator, impl=impl)
    recon = model.decode(z)
    elbo = -elbo_loss(recon, test, mu, logvar, impl=impl).item()
    ess = iwae_loss(recon, test, log_ratio, return_parts=True, impl=impl).ess.mean().item()
    active = active_units(mu).sum().item()
    bound = test_bound(model, test, bound_samples, impl, None)
    return Score(bound, elbo, bound - elbo, ess, active, seconds)


def run_model(method, samples, seed, args, train, test, after_epoch):
    """Train and score one model; ``after_epoch`` is called with each epoch's loss."""
    torch.manual_seed(seed)
    model = VAE(args.latents, args.hidden).to(args.device)
    loss = loss_of(method, samples, args.chunk_size)
    start = time.perf_counter()
    for value in fit(model, train, loss, seed, args.epochs, args.batch, args.lr, args.impl):
        after_epoch(value)
    seconds = time.perf_counter() - start
    return evaluate(model, test, args.bound_samples, seconds, args.impl)


def run_all(args):
    """{(method, K): the scores of all seeds}, with a progress bar."""
    train, test = (images.to(args.device) for images in load_digits_binary())
    cells = [(method, samples) for samples in args.samples for method in METHODS]
    scores = {cell: [] for cell in cells}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("training", total=args.seeds * len(cells) * args.epochs)

        def after_epoch(loss):
            progress.update(task, description=f"{name}   loss {loss:6.2f}", advance=1)

        for seed in range(args.seeds):
            for method, samples in cells:
                name = f"seed {seed}, {method}, K = {samples}"
                score = run_model(method, samples, seed, args, train, test, after_epoch)
                scores[method, samples].append(score)
                found = f"log p(x) {score.log_likelihood:7.2f}   ELBO {score.elbo:7.2f}"
                progress.console.print(f"{name:22}   test {found}   {score.seconds:5.1f} s")
    return scores


def mean_and_error(values):
    """The mean over seeds and its standard error, NaN for one seed."""
    values = torch.tensor(values, dtype=torch.float64)
    if len(values) == 1:
        return values.item(), math.nan
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def over_seeds(scores, method, field):
    """For each K: the mean and the standard error of a field of the scores."""
    cells = [cell for cell in scores if cell[0] == method]
    return {k: mean_and_error([getattr(s, field) for s in scores[m, k]]) for m, k in cells}


def difference(scores, samples, method, other):
    """Mean and standard error of the difference of two methods' log-likelihoods, seed by seed."""
    pairs = zip(scores[method, samples], scores[other, samples], strict=True)
    return mean_and_error([a.log_likelihood - b.log_likelihood for a, b in pairs])


def text(mean, error, digits=2):
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def score_table(scores, args):
    """A table of the results: a row for each method and K."""
    many = f"mean over {args.seeds} seeds ± standard error" if args.seeds > 1 else "seed 0"
    table = Table(title=f"test images, {many}")
    bound = f"log p(x),\n{args.bound_samples:,} samples"
    heads = ("K", "method", bound, "ELBO", "gap", f"ESS\nof {TEST_SAMPLES}", "active", "s")
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right")
    for method, samples in scores:
        mean = {f: over_seeds(scores, method, f)[samples] for f in Score._fields}
        table.add_row(
            str(samples),
            method,
            *(text(*mean[field]) for field in ("log_likelihood", "elbo")),
            f"{mean['gap'][0]:.2f}",
            f"{mean['ess'][0]:.1f}",
            f"{mean['active'][0]:.1f}",
            f"{mean['seconds'][0]:.1f}",
            end_section=method == METHODS[-1],
        )
    return table


def difference_table(scores, args):
    """The methods against each other, with the noise that seeds share taken out."""
    table = Table(title="differences of log p(x) in nats, seed by seed")
    pairs = (("IWAE", "ELBO"), ("DReG", "ELBO"), ("DReG", "IWAE"))
    for head in ("K", *(f"{a} - {b}" for a, b in pairs)):
        table.add_column(head, justify="right")
    for samples in args.samples:
        cells = (text(*difference(scores, samples, *pair), digits=3) for pair in pairs)
        table.add_row(str(samples), *cells)
    return table


def draw(scores, args, path):
    """One figure: the test log-likelihood against K, and the gap to the ELBO."""
    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # or the right label touches the left axes
    left, right = figure.subplots(1, 2)
    for method in METHODS:
        plot(left, scores, args, method, "log_likelihood")
        plot(right, scores, args, method, "gap")
    left.set(title=f"test log p(x), by {args.bound_samples:,} samples", ylabel="nats per image")
    right.set(title="what q loses: log p(x) minus ELBO", ylabel="nats per image", ylim=(0, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(args.samples, [str(samples) for samples in args.samples])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("K, samples of z for each image in training")
        axes.grid(alpha=0.3)
    left.legend(title="dot: a seed, bar: standard error" if args.seeds > 1 else None)
    figure.savefig(path)


def plot(axes, scores, args, method, field):
    """A method's line against K, its seeds as dots, its standard errors as bars."""
    # Side by side: at one K the three methods' bars would hide each other.
    aside = 1.06 ** (METHODS.index(method) - 1)
    points = over_seeds(scores, method, field)
    x = [samples * aside for samples in points]
    means, errors = zip(*points.values(), strict=True)
    options = {"color": COLORS[method], "marker": "_", "markersize": 12, "capsize": 3}
    axes.errorbar(x, means, errors, label=method, **options)
    for at, samples in zip(x, points, strict=True):
        values = [getattr(score, field) for score in scores[method, samples]]
        axes.plot([at] * len(values), values, ".", color=COLORS[method], alpha=0.4)


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Train a VAE by ELBO, IWAE and DReG.")
    cuda = torch.cuda.is_available()
    parser.add_argument("--impl", choices=("auto", "triton", "numba", "reference"), default="auto")
    about = "of z for each image, in training (default: 1 8 64)"
    numbers = {"nargs": "+", "type": int, "metavar": "K", "default": [1, 8, 64]}
    parser.add_argument("--samples", **numbers, help=about)
    about = "train IWAE and DReG on this many samples at a time, in less memory"
    parser.add_argument("--chunk-size", type=int, metavar="N", help=about)
    about = "samples of the test log-likelihood (default: 5000)"
    parser.add_argument("--bound-samples", type=int, metavar="K", default=5000, help=about)
    parser.add_argument("--seeds", type=int, default=4, help="how many: 0, 1, ... (default: 4)")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--out", type=Path, default=Path("iwae_digits"), help="folder to write to")
    args = parser.parse_args(argv)
    for name in ("bound_samples", "seeds", "epochs"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least 1, got {getattr(args, name)}")
    args.samples = sorted(set(args.samples))
    try:  # one image tells now, in one line, whether the options go together on --device
        x = torch.zeros(1, PIXELS, device=args.device)
        for method in METHODS:
            loss = loss_of(method, args.samples[0], args.chunk_size)
            loss(VAE(1, 1).to(args.device), x, impl=args.impl)
    except (RuntimeError, AssertionError, ValueError) as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    start = time.perf_counter()
    scores = run_all(args)

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "iwae_digits.png"
    draw(scores, args, path)
    console = Console()
    console.print(score_table(scores, args))
    console.print(difference_table(scores, args))
    console.print(f"{time.perf_counter() - start:.0f} s in all, pictures in {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
