"""Three priors for one autoencoder, and the total correlation of a beta-TCVAE as it trains.

The digits and the networks of vae_digits.py. First with the standard normal as the prior, with a
mixture of Gaussians, and with a VampPrior, whose components are q at pseudo-inputs: images that are
learned with the rest. A step of training is as short with any of them:

    z, kl = rsample_kl(*model.encode(x), prior=model.mixture(), gradient="path")
    loss = elbo_loss(model.decode(z), x, kl=kl)

All have the same steps of training, and the two mixtures the same number of components. Then a
beta-TCVAE for each of --betas. Beside its exact total correlation, which compares every z with the
q of all images, stand estimates from batches, by fused_elbo and by four published programs.

    python examples/vamp_digits.py
    python examples/vamp_digits.py --epochs 20 --tc-epochs 20 --seeds 1      # a first look

The first takes two minutes of one core's time. For each seed the three models start from the same
networks and see the same batches, and all are judged with the same noise.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from iwae_digits import fit, mean_and_error, text
from matplotlib.figure import Figure
from migration import describe, rounded
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn
from torch.distributions import Normal
from vae_digits import (
    CHUNK,
    PIXELS,
    VAE,
    load_digits_binary,
    log_likelihood,
    positive_int,
    show_images,
)

from fused_elbo import (
    Mixture,
    elbo_loss,
    elbo_tc_loss,
    gaussian_rsample,
    kl_decomposition,
    rsample_kl,
)
from fused_elbo.estimators.diagnostics import active_units
from fused_elbo.estimators.evaluation import log_likelihood_bound

PRIORS = ("standard", "mixture", "VampPrior")
TRAINING_IMAGES = 1437
TC_LR = 4e-3  # of the beta-TCVAEs, whose batches are five times as large
TC_POINTS = 20  # how often their total correlation is measured
# Okabe & Ito's colours, which colour-blind readers can tell apart.
LOOKS = {
    "exact": {"color": "black", "linewidth": 2},
    "stratified": {"color": "#009E73", "marker": "o", "markersize": 3},
    "weighted": {"color": "#0072B2", "marker": "s", "markersize": 3},
    "rtqichen, pythae": {"color": "#D55E00", "marker": "^", "markersize": 3},
    "YannDubs, AntixK": {"color": "#CC79A7", "marker": "v", "markersize": 3},
}
TEST_SAMPLES = 10  # of z for each image, of the test ELBO


class PriorVAE(VAE):
    """A VAE and its prior, by name; the mixtures' components have equal weights."""

    def __init__(self, prior, components, train, latents=8, hidden=128):
        super().__init__(latents, hidden)
        self.prior = prior
        if prior == "mixture":
            self.mu = nn.Parameter(torch.randn(components, latents))
            self.logvar = nn.Parameter(torch.zeros(components, latents))
        if prior == "VampPrior":
            # From images of the training data, half way to grey: 0.27 and 0.73.
            chosen = train[torch.randperm(len(train))[:components]]
            self.pseudo_inputs = nn.Parameter(2 * chosen - 1)

    def mixture(self):
        """The prior as rsample_kl takes it: None is the standard normal."""
        if self.prior == "standard":
            return None
        if self.prior == "mixture":
            return Mixture(self.mu, self.logvar)
        return Mixture(*self.encode(self.pseudo_inputs.sigmoid()))

    def parameters_of_prior(self):
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        return sum(p.numel() for p in self.parameters()) - sum(p.numel() for p in networks)

    def sample(self, count, generator):
        """z from the prior, [count, latents]."""
        mixture, device = self.mixture(), generator.device
        if mixture is None:
            return torch.randn(count, self.latents, generator=generator, device=device)
        k = torch.randint(len(mixture.mu), (count,), generator=generator, device=device)
        return gaussian_rsample(mixture.mu[k], mixture.logvar[k], generator=generator)


def negative_elbo(model, x, impl="auto"):
    """-ELBO in nats, the mean over the images, from one sample of z for each."""
    mixture = model.mixture()
    gradient = "total" if mixture is None else "path"
    z, kl = rsample_kl(*model.encode(x), prior=mixture, gradient=gradient, impl=impl)
    return elbo_loss(model.decode(z), x, kl=kl, impl=impl)


class Score(NamedTuple):
    """The measurements of a trained model, on the test images, in nats per image."""

    log_likelihood: float  # the bound with many samples
    elbo: float
    kl: float  # of the ELBO, by Monte Carlo for mixtures
    active: int  # latents in use


def moments(mixture):
    """Mean and log variance of each latent of a prior: the units in which q's means vary."""
    if mixture is None:
        return None, None
    variance = mixture.logvar.exp().mean(0) + mixture.mu.var(0, correction=0)
    return mixture.mu.mean(0), variance.log()


@torch.no_grad()
def evaluate(model, test, bound_samples, impl="auto"):
    """The score of a model, with noise of its own."""
    generator = torch.Generator(test.device).manual_seed(0)
    mixture, (mu, logvar) = model.mixture(), model.encode(test)
    options = {"prior": mixture, "generator": generator, "impl": impl}
    *q, x = (t.repeat(TEST_SAMPLES, 1) for t in (mu, logvar, test))
    z, kl = rsample_kl(*q, **options)
    parts = elbo_loss(model.decode(z), x, kl=kl, return_parts=True, impl=impl)
    target = log_likelihood(model, test, impl)
    options |= {"chunk_size": CHUNK, "log_likelihood": target}
    bound = log_likelihood_bound(mu, logvar, bound_samples, **options).bound.mean().item()
    mean, spread = moments(mixture)
    active = active_units(mu, prior_mu=mean, prior_logvar=spread).sum().item()
    return Score(bound, -parts.loss.item(), parts.kl.item(), active)


def tc_loss(model, x, impl="auto", *, size, beta):
    """The loss of a beta-TCVAE on a batch of a data set of ``size`` images."""
    mu, logvar = model.encode(x)
    z = gaussian_rsample(mu, logvar, impl=impl)
    options = {"total_correlation": beta, "impl": impl}
    return elbo_tc_loss(model.decode(z), x, z, mu, logvar, size, **options)


def pair_log_densities(z, mu, logvar):
    """log N(z_id; mu_jd, sigma_jd) of every example i and every component j, [B, B, D]."""
    return Normal(mu, (0.5 * logvar).exp()).log_prob(z.unsqueeze(1))


def misplaced_log_weights(batch, size, like):
    """Stratified weights where four public programs have them: down a column, not a diagonal.

    z_i's own q should count 1/N, so row i's weight at i, and one other (N - M) / (N M), M = B - 1.
    They fill the flat matrix in steps of B, which is the length of a row: every step ends in the
    same column, and all rows have these weights at examples 0 and 1.
    """
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=like.dtype, device=like.device)
    weights[:, 0] = 1 / size
    weights[:, 1] = weights[-2, 0] = (size - others) / (size * others)
    return weights.log()


def misplaced_weights(z, mu, logvar, size):
    """The total correlation [B] that rtqichen/beta-tcvae and pythae compute: weights misplaced."""
    pairs = pair_log_densities(z, mu, logvar)
    log_weights = misplaced_log_weights(len(z), size, z)
    joint = torch.logsumexp(pairs.sum(-1) + log_weights, 1)
    return joint - torch.logsumexp(pairs + log_weights.unsqueeze(-1), 1).sum(-1)


def repeated_weights(z, mu, logvar, size):
    """That of YannDubs/disentangling-vae and AntixK/PyTorch-VAE: the joint has each weight D times.

    The weights, misplaced as well, are added to every latent's density before the latents are
    summed. For the marginals that is right.
    """
    weighted = pair_log_densities(z, mu, logvar) + misplaced_log_weights(len(z), size, z)[..., None]
    return torch.logsumexp(weighted.sum(-1), 1) - torch.logsumexp(weighted, 1).sum(-1)


def of_library(z, mu, logvar, size, *, estimator):
    return kl_decomposition(z, mu, logvar, size, estimator=estimator).total_correlation


ESTIMATORS = {
    "stratified": partial(of_library, estimator="stratified"),
    "weighted": partial(of_library, estimator="weighted"),
    "rtqichen, pythae": misplaced_weights,
    "YannDubs, AntixK": repeated_weights,
}


@torch.no_grad()
def total_correlations(model, train, batch, impl="auto"):
    """The total correlation over a data set, exactly and by each estimator, in nats.

    All see the same z, one of each image, with noise of its own; the images that are left over from
    whole batches count in the exact q(z) alone.
    """
    generator = torch.Generator(train.device).manual_seed(0)
    everything = model.encode(train)
    whole = len(train) - len(train) % batch
    mu, logvar = (t[:whole] for t in everything)
    z = gaussian_rsample(mu, logvar, generator=generator, impl=impl)
    options = {"estimator": "aggregate", "dataset": everything, "impl": impl}
    exact = kl_decomposition(z, mu, logvar, **options)
    found = {"exact": exact.total_correlation.mean().item()}
    for name, estimate in ESTIMATORS.items():
        batches = zip(*(t.split(batch) for t in (z, mu, logvar)), strict=True)
        found[name] = torch.cat([estimate(*q, len(train)) for q in batches]).mean().item()
    return found


def compare_priors(args, train, test, progress):
    """{prior: the scores of all seeds}, and the models of seed 0."""
    scores, models = {prior: [] for prior in PRIORS}, {}
    task = progress.add_task("priors", total=args.seeds * len(PRIORS) * args.epochs)
    for seed in range(args.seeds):
        for prior in PRIORS:
            torch.manual_seed(seed)
            model = PriorVAE(prior, args.components, train, args.latents, args.hidden)
            model = model.to(args.device)
            start = time.perf_counter()
            options = args.epochs, args.batch, args.lr, args.impl
            for _ in fit(model, train, negative_elbo, seed, *options):
                progress.advance(task)
            seconds = time.perf_counter() - start
            score = evaluate(model, test, args.bound_samples, args.impl)
            scores[prior].append(score)
            models.setdefault(prior, model)
            found = f"log p(x) {score.log_likelihood:7.2f}   ELBO {score.elbo:7.2f}"
            progress.console.print(f"seed {seed}, {prior:9}   test {found}   {seconds:5.1f} s")
    return scores, models


def follow_total_correlation(args, train, progress):
    """{beta: {"epoch" or estimator: values while it trains}}, of one seed."""
    curves = {}
    task = progress.add_task("beta-TCVAE", total=len(args.betas) * args.tc_epochs)
    every = max(1, args.tc_epochs // TC_POINTS)
    for beta in args.betas:
        torch.manual_seed(0)
        model = VAE(args.latents, args.hidden).to(args.device)
        loss = partial(tc_loss, size=len(train), beta=beta)
        curve = {"epoch": [0]}
        measure = partial(total_correlations, model, train, args.tc_batch, args.impl)
        curve |= {name: [value] for name, value in measure().items()}
        options = args.tc_epochs, args.tc_batch, TC_LR, args.impl
        for epoch, _ in enumerate(fit(model, train, loss, 0, *options), 1):
            progress.advance(task)
            if epoch % every and epoch < args.tc_epochs:
                continue
            curve["epoch"].append(epoch)
            for name, value in measure().items():
                curve[name].append(value)
        found = f"exact {curve['exact'][-1]:.3f}, stratified {curve['stratified'][-1]:.3f}"
        progress.console.print(f"beta {beta:g}   total correlation, nats: {found}")
        curves[beta] = curve
    return curves


def prior_table(scores, models, args):
    """A table of the results: a row for each prior, with its number of parameters.

    Differences are taken seed by seed, because the priors share much of a seed's luck.
    """
    many = f"mean over {args.seeds} seeds ± standard error" if args.seeds > 1 else "seed 0"
    table = Table(title=f"test images, nats per image, {many}")
    bound = f"log p(x),\n{args.bound_samples:,} samples"
    heads = ("prior", "size", bound, "- standard", "ELBO", "active")
    for head in heads:
        table.add_column(head, justify="left" if head == "prior" else "right")
    for prior, found in scores.items():
        over_seeds = {f: [getattr(score, f) for score in found] for f in Score._fields}
        mean = {f: mean_and_error(values) for f, values in over_seeds.items()}
        pairs = zip(found, scores["standard"], strict=True)
        difference = [a.log_likelihood - b.log_likelihood for a, b in pairs]
        table.add_row(
            prior,
            f"{models[prior].parameters_of_prior():,}",
            text(*mean["log_likelihood"]),
            "" if prior == "standard" else text(*mean_and_error(difference)),
            text(*mean["elbo"]),
            f"{mean['active'][0]:.1f}",
        )
    return table


def tc_table(curves, args):
    """At the end of training: the exact value, and how far off the estimates are."""
    title = f"total correlation after {args.tc_epochs} epochs, nats, batches of {args.tc_batch}"
    table = Table(title=title)
    for head in ("beta", "exact", *(f"{name}\nis off by" for name in ESTIMATORS)):
        table.add_column(head, justify="right")
    for beta, curve in curves.items():
        exact = curve["exact"][-1]
        off = (f"{curve[name][-1] - exact:+.2f}" for name in ESTIMATORS)
        table.add_row(f"{beta:g}", f"{exact:.2f}", *off)
    return table


@torch.no_grad()
def draw(scores, models, curves, args, path, columns=12):
    """One figure: samples from the priors; log p(x) by seed; the total correlation in training."""
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3, 4))
    panels = above.subplots(2, 2).flat
    for axes, (prior, model) in zip(panels, models.items(), strict=False):
        generator = torch.Generator(args.device).manual_seed(0)
        images = model.decode(model.sample(3 * columns, generator)).sigmoid()
        show_images(axes, images, columns, f"{prior}: samples, p(pixel is ink)")
    learned = models["VampPrior"].pseudo_inputs.sigmoid()[: 3 * columns]
    rows = nn.functional.pad(learned, (0, 0, 0, -len(learned) % columns))
    title = f"VampPrior: {len(learned)} of {args.components} pseudo-inputs"
    show_images(above.axes[-1], rows, columns, title)

    left, middle, right = below.subplots(1, 3)
    draw_priors(left, scores, args)
    draw_total_correlation(middle, right, curves, args)
    figure.savefig(path, metadata={"Software": None})


def draw_priors(axes, scores, args):
    """Each seed a line from prior to prior, and their mean with its standard error."""
    values = [[score.log_likelihood for score in scores[prior]] for prior in PRIORS]
    for seed in zip(*values, strict=True):
        axes.plot(PRIORS, seed, ".-", color="0.75", linewidth=1)
    means, errors = zip(*map(mean_and_error, values), strict=True)
    axes.errorbar(PRIORS, means, errors, fmt="_", color="black", markersize=16, capsize=4)
    axes.set(title=f"test log p(x), {args.bound_samples:,} samples", ylabel="nats per image")
    axes.set_xlabel("grey: a seed; bar: standard error" if args.seeds > 1 else "prior")
    axes.grid(alpha=0.3)


def draw_total_correlation(near, errors, curves, args):
    """A table: the exact value, and for the last beta the error of each estimate."""
    first, last = min(curves), max(curves)
    curve = curves[last]
    if first != last:
        look = LOOKS["exact"] | {"linestyle": "--", "linewidth": 1}
        other = curves[first]
        near.plot(other["epoch"], other["exact"], label=f"exact, β = {first:g}", **look)
    for name in ("exact", "stratified", "rtqichen, pythae"):
        near.plot(curve["epoch"], curve[name], label=f"{name}, β = {last:g}", **LOOKS[name])
    near.axhline(0, color="0.6", linewidth=1)
    near.set(title="β-TCVAE: total correlation", ylabel="nats")
    for name in ESTIMATORS:
        off = [abs(e - x) for e, x in zip(curve[name], curve["exact"], strict=True)]
        errors.plot(curve["epoch"][1:], off[1:], label=name, **LOOKS[name])
    errors.set(title=f"β = {last:g}: how far off, in batches of {args.tc_batch}", yscale="log")
    errors.set_ylabel("|estimate - exact|, nats")
    for axes in (near, errors):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


def record(scores, models, curves, args):
    """All that was measured, for the JSON file."""
    of_machine = "device", "out", "json"
    settings = {name: value for name, value in vars(args).items() if name not in of_machine}
    priors = {
        prior: {
            "parameters": models[prior].parameters_of_prior(),
            "scores": [score._asdict() for score in found],
        }
        for prior, found in scores.items()
    }
    followed = [{"beta": beta, **curve} for beta, curve in curves.items()]
    found = {"priors": priors, "total_correlation": followed}
    return {"machine": describe(args.device), "settings": settings} | found


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Three priors, and a beta-TCVAE, on the digits.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--impl", choices=("auto", "triton", "numba", "reference"), default="auto")
    about = "of the mixture and of the VampPrior (default: 50)"
    parser.add_argument("--components", type=positive_int, default=50, metavar="K", help=about)
    about = "samples of the test log-likelihood (default: 1000)"
    numbers = {"type": positive_int, "metavar": "K", "default": 1000}
    parser.add_argument("--bound-samples", **numbers, help=about)
    about = "how many, of the priors: 0, 1, ... (default: 6)"
    parser.add_argument("--seeds", type=positive_int, default=6, help=about)
    parser.add_argument("--epochs", type=positive_int, default=60)
    parser.add_argument("--latents", type=positive_int, default=8)
    parser.add_argument("--hidden", type=positive_int, default=128)
    parser.add_argument("--batch", type=positive_int, default=50)
    parser.add_argument("--lr", type=float, default=2e-3)
    about = "weights of the total correlation (default: 1 4)"
    weights = {"nargs": "+", "type": float, "default": [1.0, 4.0], "metavar": "BETA"}
    parser.add_argument("--betas", **weights, help=about)
    parser.add_argument("--tc-epochs", type=positive_int, default=100)
    parser.add_argument("--tc-batch", type=positive_int, default=256)
    parser.add_argument("--device", type=torch.device, default=torch.device(device))
    parser.add_argument("--out", type=Path, default=Path("vamp_digits"), help="folder to write to")
    about = "default: vamp_digits.json in that folder"
    parser.add_argument("--json", type=Path, metavar="FILE", help=about)
    args = parser.parse_args(argv)
    left = TRAINING_IMAGES % args.tc_batch
    if not 2 <= args.tc_batch <= TRAINING_IMAGES or left == 1:
        about = f"--tc-batch must be 2 to {TRAINING_IMAGES} and leave no single image over"
        parser.error(f"{about}, got {args.tc_batch}")
    try:  # one image tells now, in one line, whether the options go together on --device
        x = torch.zeros(1, PIXELS, device=args.device)
        negative_elbo(PriorVAE("VampPrior", 1, x, 1, 1).to(args.device), x, args.impl)
    except (RuntimeError, AssertionError, ValueError) as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    start = time.perf_counter()
    train, test = (images.to(args.device) for images in load_digits_binary())
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn()) as progress:
        scores, models = compare_priors(args, train, test, progress)
        curves = follow_total_correlation(args, train, progress)

    args.out.mkdir(parents=True, exist_ok=True)
    path, picture = args.json or args.out / "vamp_digits.json", args.out / "vamp_digits.png"
    found = json.dumps(rounded(record(scores, models, curves, args)))
    path.write_text(found + "\n", encoding="utf-8", newline="\n")
    draw(scores, models, curves, args, picture)
    console = Console()
    console.print(prior_table(scores, models, args))
    console.print(tc_table(curves, args))
    seconds = time.perf_counter() - start
    console.print(
        f"{seconds:.0f} s in all, picture in {picture}, numbers in {path}", soft_wrap=True
    )


if __name__ == "__main__":
    main()
