"""Variational inference on real data, with the truth known to the last digit.

Bayesian linear regression of scikit-learn's diabetes data: 442 patients, ten measurements
and an intercept. The first picture has two latent variables, the slope and the intercept of one
measurement, and what more and more patients say of them. The second is of all 11 weights: the
posterior and the log evidence are known exactly, and so is the ELBO of any q, so the curves are the
true progress of each estimator, without noise. Half a minute on one core of a CPU:

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
from fused_elbo.estimators.models import (
    BayesianLinearRegression,
    DiagonalGaussian,
    as_full,
    kl_divergence,
)

# An upper bound, to be minimised, and a formula to evaluate with: not for fitting q.
FITTING = [name for name in ESTIMATORS if name not in ("cubo", "jackknife")]
PATIENTS = (0, 5, 20, 442)  # of the first picture
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
    fitted = design @ least_squares(design, target)
    degrees_of_freedom = len(target) - design.shape[1]
    noise_variance = (target - fitted).square().sum().item() / degrees_of_freedom
    return BayesianLinearRegression(design, target, noise_variance, prior_variance)


def simple_model(patients):
    """Slope and intercept of one measurement, the body mass index, for the first patients.

    In steps of 5 kg/m^2 from 20 on, not centred: what the data say of the two is correlated. The
    target is standardised, the noise variance that of the least-squares line of all patients.
    """
    measurements, target = (
        torch.from_numpy(a) for a in load_diabetes(return_X_y=True, scaled=False)
    )
    target, steps = standardised(target), (measurements[:, 2] - 20) / 5
    design = torch.stack([steps, torch.ones_like(steps)], 1)
    residual = target - design @ least_squares(design, target)
    noise_variance = residual.square().sum().item() / (len(target) - 2)
    return BayesianLinearRegression(design[:patients], target[:patients], noise_variance, 1.0)


def least_squares(design, target):
    return torch.linalg.lstsq(design, target[:, None]).solution[:, 0]


def target(model, name, prior_logvar):
    """The part of p that ``estimate`` needs: for "elbo" the likelihood, else the joint."""
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
        table.add_row(name, bound, *(f"{round(number, 9) + 0.0:.3f}" for number in numbers))

    for name, elbos in curves.items():
        add(name, ESTIMATORS[name].bound, elbos[-1])
    table.add_section()
    add("exact optimum", "ELBO", model.elbo(model.optimal_diagonal()).item())
    table.add_row("log evidence", "", f"{evidence:.3f}")
    return table


def latents_summary(models):
    """A table: what each number of patients says of the slope, and log p(y) = ELBO + KL."""
    table = Table(
        title="slope per 5 kg/m²; log evidence of the patients, nats", title_justify="left"
    )
    names = "patients", "LS line", "posterior", "mean field", "ELBO", "+ KL", "= log p(y)"
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        posterior, q = model.posterior(), model.optimal_diagonal()
        point = f"{least_squares(model.design, model.targets)[0]:.2f}" if len(model.design) else ""
        deviations = posterior.covariance[0, 0].sqrt(), (0.5 * q.logvar[0]).exp()
        slopes = [f"{posterior.mean[0]:.2f} ± {deviation:.2f}" for deviation in deviations]
        nats = model.elbo(q), kl_divergence(as_full(q), posterior), model.log_evidence()
        nats = (f"{round(n.item(), 6) + 0.0:.2f}" for n in nats)
        table.add_row(f"{len(model.design)}", point, *slopes, *nats)
    return table


def draw_latents(models, path):
    """The first picture, a column for each number of patients: plane, prediction, evidence."""
    figure = Figure(figsize=(11, 8.5), dpi=100, layout="constrained")
    rows = figure.subplots(3, len(models), sharex="row")
    steps, targets = models[-1].design[:, 0], models[-1].targets
    for column, model in enumerate(models):
        plane, prediction, evidence = rows[:, column]
        draw_plane(plane, model)
        prediction.plot(*to_units(steps, targets), ".", color="0.8", markersize=3)
        draw_prediction(prediction, model)
        draw_evidence(evidence, model)
        count = len(model.design)
        plane.set(title=f"{count} patients" if count else "before any data")
        plane.set(xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), xlabel="slope per 5 kg/m²")
        prediction.set(ylim=(-3.2, 4), xlabel="body mass index (kg/m²)")
        for axes in (plane, prediction, evidence):
            axes.grid(alpha=0.3)
    for axes, text in zip(rows[:, 0], LATENT_LABELS, strict=True):
        axes.set_ylabel(text)
    rows[0, -1].legend(fontsize=8, loc="upper right")
    rows[1, -1].legend(fontsize=8, loc="upper left")
    figure.savefig(path)


LATENT_LABELS = ("intercept, at 20 kg/m²", "disease progression (standardised)", "nats")


def ellipse(gaussian):
    """The curve that holds 95 % of a Gaussian of two dimensions: points [2, 200]."""
    angle = torch.linspace(0, 2 * torch.pi, 200, dtype=gaussian.mean.dtype)
    circle = torch.stack([angle.cos(), angle.sin()])
    radius = (-2 * torch.log(torch.tensor(0.05))).sqrt()  # of chi-square, two degrees of freedom
    return gaussian.mean[:, None] + radius * torch.linalg.cholesky(gaussian.covariance) @ circle


def draw_plane(axes, model):
    """95 % of prior, posterior and q, and the point that least squares knows."""
    prior, posterior = model.model().full_prior(), model.posterior()
    axes.plot(*ellipse(prior), color="0.6", label="prior")
    axes.fill(*ellipse(posterior), color=COLOURS[0], alpha=0.5, label="exact posterior")
    axes.plot(*ellipse(as_full(model.optimal_diagonal())), color=COLOURS[1], label="mean-field q")
    if len(model.design):
        point = least_squares(model.design, model.targets)
        axes.plot(*point[:, None], "x", color="black", label="least squares")


def draw_prediction(axes, model):
    """95 % of the line and of a new patient; least squares has a line, the same at any count."""
    steps = torch.linspace(-0.8, 4.6, 100, dtype=torch.float64)
    design, posterior = torch.stack([steps, torch.ones_like(steps)], 1), model.posterior()
    middle = design @ posterior.mean
    line = (design @ posterior.covariance * design).sum(1)
    for variance, alpha, name in (
        (line + model.noise_variance, 0.2, "95 % of new patients"),
        (line, 0.45, "95 % of the line"),
    ):
        reach = 1.96 * variance.sqrt()
        x, low = to_units(steps, middle - reach)
        options = {"color": COLOURS[0], "alpha": alpha, "linewidth": 0}
        axes.fill_between(x, low, middle + reach, label=name, **options)
    if len(model.design):
        fitted = design @ least_squares(model.design, model.targets)
        axes.plot(*to_units(steps, fitted), "--", color="black", label="least squares")
        size = 6 if len(model.design) < 100 else 3
        axes.plot(*to_units(model.design[:, 0], model.targets), ".", color="black", markersize=size)


def to_units(steps, values):
    """kg/m^2 again, and the values, as matplotlib takes them."""
    return 20 + 5 * steps, values


def draw_evidence(axes, model):
    """log p(y) = ELBO + KL: a stacked bar, whose lower end is out of sight."""
    # + 0.0: no -0.00 before any data.
    elbo = round(model.elbo(model.optimal_diagonal()).item(), 6) + 0.0
    evidence = model.log_evidence().item()
    bottom = evidence - 1.6  # as many nats in every column
    axes.bar(0, elbo - bottom, 0.5, bottom, color=COLOURS[1], alpha=0.6)
    axes.bar(0, evidence - elbo, 0.5, elbo, color=COLOURS[4])
    axes.axhline(evidence, color="black")
    axes.set(xlim=(-0.4, 1.1), ylim=(bottom, evidence + 0.4), xticks=[])
    text = {"fontsize": 9, "va": "center"}
    axes.text(0.3, evidence + 0.17, f"log p(y) {evidence:.2f}", **text)
    axes.text(0.3, (elbo + evidence) / 2 - 0.12, f"KL {evidence - elbo:.2f}", **text)
    axes.text(0.3, bottom + 0.4, f"ELBO {elbo:.2f}", **text)


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
    latents, first = [simple_model(n) for n in PATIENTS], args.out / "slope_and_intercept.png"
    draw_latents(latents, first)
    console.print(latents_summary(latents))
    console.print(f"picture in {first}", soft_wrap=True)
    console.print(f"noise variance {model.noise_variance:.3f}, prior variance 1 (standardised)")
    console.print(summary(model, curves))
    if any(ESTIMATORS[name].bound != "ELBO" for name in curves):
        console.print("Who climbs another bound than the ELBO need not end at the ELBO's optimum.")
    console.print(f"picture in {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
