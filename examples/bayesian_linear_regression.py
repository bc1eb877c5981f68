"""Variational inference on real data, with the truth known to the last digit.

Bayesian linear regression of scikit-learn's diabetes data: 442 patients, ten measurements
and an intercept. The posterior of the 11 weights and the log evidence are known exactly, and
so is the ELBO of any q: the curves are the true progress of each estimator, without noise.
Half a minute on one core of a CPU:

    python examples/bayesian_linear_regression.py
"""

import argparse
import itertools
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_diabetes

from fused_elbo.estimators.bounds import ESTIMATORS, estimate
from fused_elbo.estimators.models import BayesianLinearRegression, DiagonalGaussian

# An upper bound, to be minimised, and a formula to evaluate with: not for fitting q.
FITTING = [name for name in ESTIMATORS if name not in ("cubo", "jackknife")]
DEFAULT = ["elbo-entropy", "elbo-monte-carlo", "stl", "reinforce", "iwae", "dreg"]
# Okabe & Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
# The gradients of these two are the same, so their lines are too: dashes on a wide line.
LOOKS = {"elbo-entropy": {"linewidth": 3.5}, "elbo-monte-carlo": {"linestyle": (0, (4, 4))}}


def standardised(values):
    """Mean 0 and standard deviation 1 over the patients."""
    return (values - values.mean(0)) / values.std(0, correction=0)


def diabetes_model(prior_variance=1.0):
    """y ~ N(X w, sigma^2 I), w ~ N(0, I): measurements and target standardised, in float64.

    The noise variance is that of the least-squares residuals, RSS / (N - D).
    """
    measurements, target = (torch.from_numpy(a) for a in load_diabetes(return_X_y=True))
    target = standardised(target)
    design = torch.cat([torch.ones(len(target), 1), standardised(measurements)], 1)
    fitted = design @ torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    degrees_of_freedom = len(target) - design.shape[1]
    noise_variance = (target - fitted).square().sum().item() / degrees_of_freedom
    return BayesianLinearRegression(design, target, noise_variance, prior_variance)


def target(model, name, prior_logvar):
    """What ``estimate`` needs to know of p: "elbo", with its closed-form KL, not the joint."""
    if name == "elbo":
        return {"log_likelihood": model.log_likelihood, "prior_logvar": prior_logvar}
    return {"log_joint": model.log_joint}


def fit(model, name, samples=10, steps=2000, lr=0.05, seed=0):
    """Fit q by one estimator, with Adam; yields the exact ELBO of q after every step."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.zeros_like(model.design[0], requires_grad=True)
    prior_logvar = torch.full_like(model.design[0], model.prior).log()
    logvar = prior_logvar.clone().requires_grad_()  # q starts as the prior
    p = target(model, name, prior_logvar)
    # The first gradients are a thousand times the last: with beta2 = 0.99 Adam forgets them.
    optimizer = torch.optim.Adam([mu, logvar], lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        result = estimate(name, mu, logvar, samples, generator=generator, **p)
        optimizer.zero_grad()
        (-result.surrogate).backward()
        optimizer.step()
        schedule.step()
        yield model.elbo(DiagonalGaussian(mu.detach(), logvar.detach())).item()


def summary(model, curves):
    """A table: how far each q got, and what separates it from the log evidence.

    "to go" is what a longer fit or a better estimator could still gain, "gap" what no
    mean-field q can: together they are the distance to the log evidence.
    """
    evidence, gap = model.log_evidence().item(), model.mean_field_gap().item()
    table = Table(title="exact ELBO of the fitted q, in nats", title_justify="left")
    table.add_column("estimator", no_wrap=True)
    table.add_column("climbs")
    for name in ("exact ELBO", "to go", "+ gap", "= to evidence"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name, bound, elbo):
        numbers = elbo, evidence - gap - elbo, gap, evidence - elbo
        table.add_row(name, bound, *(f"{number:.3f}" for number in numbers))

    for name, elbos in curves.items():
        add(name, ESTIMATORS[name].bound, elbos[-1])
    table.add_section()
    add("exact optimum", "ELBO", model.elbo(model.optimal_diagonal()).item())
    table.add_row("log evidence", "", f"{evidence:.3f}")
    return table


def draw(model, curves, path):
    """One figure: the ELBO under its optimum and the log evidence; the distance that is left."""
    figure = Figure(figsize=(8, 6.2), dpi=100, layout="constrained")
    rise, distance = figure.subplots(2, 1, sharex=True)
    optimum = model.elbo(model.optimal_diagonal()).item()
    every = max(1, len(next(iter(curves.values()))) // 80)  # 80 points are enough to see
    for (name, elbos), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        look = {"color": colour, "label": label(name)} | LOOKS.get(name, {})
        steps = range(1, len(elbos) + 1)[::every]
        rise.plot(steps, elbos[::every], **look)
        # Rounding may leave an ELBO that is at its optimum 1e-13 above it.
        distance.plot(steps, [max(optimum - elbo, 1e-12) for elbo in elbos[::every]], **look)
    show_truth(rise, model)
    rise.set(ylabel="exact ELBO of q (nats)", title="Diabetes data, 11 weights, mean-field q")
    distance.set(ylabel="nats below the exact optimum", yscale="log")
    distance.set(xlabel=f"step (one in {every} is drawn)")
    distance.legend(ncols=2, fontsize=9)
    for axes in (rise, distance):
        axes.grid(alpha=0.3)
    figure.savefig(path)


def show_truth(axes, model):
    """The two exact lines and, between them, the gap that no mean-field q can close."""
    evidence, gap = model.log_evidence().item(), model.mean_field_gap().item()
    optimum = evidence - gap
    axes.set_ylim(optimum - 8 * gap, evidence + 2 * gap)
    axes.axhline(evidence, color="black", linewidth=1.5)
    axes.axhline(optimum, color="black", linewidth=1.5, linestyle="--")
    place = axes.get_yaxis_transform()  # x as a share of the width, y in nats
    text = {"transform": place, "fontsize": 9}
    axes.text(0.01, evidence + 0.15 * gap, f"log evidence {evidence:.2f}", va="bottom", **text)
    axes.text(0.01, optimum - 0.15 * gap, f"exact optimum {optimum:.2f}", va="top", **text)
    arrow = {"arrowstyle": "<->", "shrinkA": 0, "shrinkB": 0}
    ends = {"xy": (0.3, evidence), "xytext": (0.3, optimum)}
    axes.annotate("", **ends, xycoords=place, textcoords=place, arrowprops=arrow)
    explained = f"mean-field gap, {gap:.2f} nats: q ignores correlations"
    axes.text(0.31, evidence - gap / 2, explained, va="center", **text)


def label(name):
    """The name, and the bound where it is not the ELBO that the estimator climbs."""
    bound = ESTIMATORS[name].bound
    return name if bound == "ELBO" else f"{name} (climbs {bound})"


def parse(argv=None):
    parser = argparse.ArgumentParser(description="Fit q to Bayesian linear regression.")
    names = {"choices": FITTING, "metavar": "NAME", "help": f"of {', '.join(FITTING)}"}
    parser.add_argument("--estimators", nargs="+", default=DEFAULT, **names)
    parser.add_argument("--samples", type=int, default=10, help="of q at each step")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=0.05, help="Adam's, at the start")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, got {args.steps}")
    try:  # one step tells now whether each estimator can work with --samples
        for name in args.estimators:
            next(fit(diabetes_model(), name, args.samples, 1))
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)  # matrices this small take longer when threads share them
    model = diabetes_model()
    curves = {name: [] for name in args.estimators}
    columns = TextColumn("{task.description:16}"), BarColumn(), MofNCompleteColumn()
    status = TextColumn("exact ELBO {task.fields[elbo]:9.2f} nats")
    with Progress(*columns, TimeElapsedColumn(), status) as progress:
        for name, elbos in curves.items():
            task = progress.add_task(name, total=args.steps, elbo=float("nan"))
            for elbo in fit(model, name, args.samples, args.steps, args.lr, args.seed):
                elbos.append(elbo)
                progress.update(task, advance=1, elbo=elbo)

    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "bayesian_linear_regression.png"
    draw(model, curves, path)
    console = Console()
    console.print(f"noise variance {model.noise_variance:.3f}, prior variance 1 (standardised)")
    console.print(summary(model, curves))
    if any(ESTIMATORS[name].bound != "ELBO" for name in curves):
        console.print("Who climbs another bound than the ELBO need not end at the ELBO's optimum.")
    console.print(f"picture in {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
