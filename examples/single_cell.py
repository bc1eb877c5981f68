"""A variational autoencoder of gene counts, on cells whose types and dispersions are known.

The cells are simulated: a type has its own share for each gene, a gene its own dispersion, and a
count is Poisson with a Gamma rate. Three likelihoods are trained on the same cells, and one of them
a second time with the formula that everyone writes. A minute on one core of a CPU:

    python examples/single_cell.py
"""

import argparse
import time
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from fused_elbo import poisson_nll, rsample_kl, softmax_negative_binomial_nll

LIKELIHOODS = ("poisson", "negative binomial", "zero-inflated")
TEXTBOOK = "negative binomial, textbook"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
TYPES, GENES, CELLS, TEST_CELLS = 5, 1000, 3000, 600


def simulate(cells=CELLS, genes=GENES, seed=0):
    """(counts [cells, genes], types [cells], dispersions [genes]); most counts are 0."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    base = 1.5 * normal(genes)
    shares = torch.softmax(base + 0.8 * normal(TYPES, genes), 1)
    theta = torch.exp(0.3 + 1.2 * normal(genes))
    types = torch.randint(TYPES, (cells,), generator=generator)
    library = 0.8 * genes * torch.exp(0.3 * normal(cells, 1))
    torch.manual_seed(seed)  # torch's Gamma takes no generator
    rate = torch.distributions.Gamma(theta, theta).sample((cells,)) * library * shares[types]
    return torch.poisson(rate), types, theta


class CountVAE(nn.Module):
    """q(z | x) is a diagonal Gaussian; the decoder shares a cell's library out among the genes."""

    def __init__(self, likelihood, genes=GENES, latents=2, hidden=128):
        super().__init__()
        self.likelihood = likelihood
        self.encoder = nn.Sequential(
            nn.Linear(genes, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latents)
        )
        outputs = 2 * genes if likelihood == "zero-inflated" else genes
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.log_theta = nn.Parameter(torch.zeros(genes))

    def encode(self, x):
        return self.encoder(torch.log1p(x)).chunk(2, 1)

    def negative_elbo(self, x):
        """-ELBO in nats, the mean over the cells, from one sample of z for each."""
        z, kl = rsample_kl(*self.encode(x))
        return self.nll(self.decoder(z), x) + kl.mean()

    def nll(self, output, x):
        log_library = x.sum(1, keepdim=True).clamp(min=1).log()
        if self.likelihood == "poisson":
            return poisson_nll(log_library + torch.log_softmax(output, 1), x).mean()
        if self.likelihood == TEXTBOOK:
            return textbook_nll(output, x, self.log_theta, log_library)
        logits, zero_logits = output, None
        if self.likelihood == "zero-inflated":
            logits, zero_logits = output.chunk(2, 1)
        return softmax_negative_binomial_nll(
            logits, x, self.log_theta, log_library, zero_logits=zero_logits, reduction="mean"
        )


def textbook_nll(logits, x, log_theta, log_library):
    """The same as it is usually written."""
    theta, mu = log_theta.exp(), log_library.exp() * torch.softmax(logits, 1)
    log_sum = torch.log(theta + mu + 1e-8)
    log_prob = theta * (torch.log(theta + 1e-8) - log_sum) + x * (torch.log(mu + 1e-8) - log_sum)
    log_prob = log_prob + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
    return -log_prob.sum(1).mean()


def train(likelihood, x, held_out, epochs, seed=0):
    """(model, [(processor seconds, held-out -ELBO), ...]); judging stops the clock."""
    torch.manual_seed(seed)
    model = CountVAE(likelihood, x.shape[1])
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    groups = [{"params": weights}, {"params": [model.log_theta], "lr": 3e-2}]
    optimizer = torch.optim.Adam(groups, lr=2e-3, fused=True)
    model.negative_elbo(x[:128]).backward()  # compiles
    curve, seconds = [], 0.0
    for _ in range(epochs):
        start = time.process_time()
        for batch in x[torch.randperm(len(x))].split(128):
            optimizer.zero_grad()
            model.negative_elbo(batch).backward()
            optimizer.step()
        seconds += time.process_time() - start
        curve.append((seconds, per_cell(model, held_out).mean().item()))
    return model, curve


@torch.no_grad()
def per_cell(model, x, samples=5):
    """-ELBO of each cell, the mean over a few samples of z."""
    log_library = x.sum(1, keepdim=True).clamp(min=1).log()
    total = torch.zeros(len(x))
    for _ in range(samples):
        z, kl = rsample_kl(*model.encode(x))
        output, options = model.decoder(z), {}
        if model.likelihood == "poisson":
            nll = poisson_nll(log_library + torch.log_softmax(output, 1), x)
        else:
            if model.likelihood == "zero-inflated":
                output, options["zero_logits"] = output.chunk(2, 1)
            nll = softmax_negative_binomial_nll(output, x, model.log_theta, log_library, **options)
        total += (nll + kl) / samples
    return total


def run(epochs, cells=CELLS, test_cells=TEST_CELLS, genes=GENES, seed=0):
    """All that the picture shows."""
    x, types, theta = simulate(cells, genes, seed)
    x, held_out = x[:-test_cells], x[-test_cells:]
    found = {"types": types[-test_cells:], "theta": theta, "zeros": (x == 0).float().mean().item()}
    for likelihood in (*LIKELIHOODS, TEXTBOOK):
        model, curve = train(likelihood, x, held_out, epochs, seed)
        nats = per_cell(model, held_out)
        found[likelihood] = {
            "curve": curve,
            "nats": nats.mean().item(),
            "error": (nats.std() / len(nats) ** 0.5).item(),
            "mu": model.encode(held_out)[0].detach(),
            "theta": model.log_theta.exp().detach(),
        }
    return found


def draw(found):
    """Latents by type, dispersions, held-out nats, and nats against the clock."""
    matplotlib.rcParams.update({"font.size": 9, "svg.hashsalt": "fused_elbo"})
    figure = Figure(figsize=(10, 7.5), layout="constrained", dpi=110)
    (latents, dispersion), (bars, clock) = figure.subplots(2, 2)
    best = found["negative binomial"]
    for kind in range(TYPES):
        mu = best["mu"][found["types"] == kind]
        latents.scatter(*mu.T, s=8, color=COLOURS[kind], label=f"type {kind + 1}")
    latents.set(title="Mean of q(z | x) of held-out cells", xlabel="z₁", ylabel="z₂")
    latents.legend(frameon=False)
    dispersion.loglog(found["theta"], best["theta"], ".", color=COLOURS[0], alpha=0.6)
    ends = [found["theta"].min(), found["theta"].max()]
    dispersion.plot(ends, ends, color="0.5", linewidth=1)
    dispersion.set(
        title="Inverse dispersion of each gene", xlabel="simulated θ", ylabel="learned θ"
    )
    for place, likelihood in enumerate(LIKELIHOODS):
        result = found[likelihood]
        bars.errorbar(
            place, result["nats"], result["error"], fmt="o", capsize=4, color=COLOURS[place]
        )
        bars.annotate(
            f"{result['nats']:.1f}", (place, result["nats"]), (8, 0), textcoords="offset points"
        )
    bars.set_xticks(range(3), LIKELIHOODS)
    bars.set(title="Held-out -ELBO, ± one standard error", ylabel="nats per cell", xlim=(-0.5, 2.7))
    for likelihood, colour in (("negative binomial", COLOURS[0]), (TEXTBOOK, COLOURS[5])):
        clock.plot(*zip(*found[likelihood]["curve"], strict=True), color=colour, label=likelihood)
    clock.set(
        title="The same model, two implementations",
        xlabel="processor seconds of training",
        ylabel="held-out -ELBO, nats per cell",
    )
    clock.legend(frameon=False)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("single_cell.png"))
    options = parser.parse_args()
    found = run(options.epochs, seed=options.seed)
    table = Table("likelihood", "held-out -ELBO", "± error", "processor seconds", box=None)
    for likelihood in (*LIKELIHOODS, TEXTBOOK):
        result = found[likelihood]
        seconds = result["curve"][-1][0]
        row = f"{result['nats']:.2f}", f"{result['error']:.2f}", f"{seconds:.1f}"
        table.add_row(likelihood, *row)
    console = Console()
    console.print(f"{CELLS} cells, {GENES} genes, {found['zeros']:.0%} zeros; nats per cell")
    console.print(table)
    draw(found).savefig(options.figure)
    console.print(f"picture: {options.figure}")


if __name__ == "__main__":
    main()
