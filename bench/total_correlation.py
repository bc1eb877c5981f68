"""``python -m bench.total_correlation [--write]``: what the beta-TCVAEs' estimates come to.

The case is one whose q(z) is known: 20,000 codes drawn from a standard normal of 10 latents, each
the mean of a posterior of standard deviation 0.2. Batches of 256, one sample of each example. The
exact values compare each sample with all codes, by "aggregate"; the others see their batch, and
are taken off the public losses by giving one term alone a weight. ``--write`` puts the table into
docs/drop-ins.md.
"""

import argparse
import collections
import functools
import math
from pathlib import Path

import rich
import torch

from fused_elbo import compat, kl_decomposition
from fused_elbo.estimators.functional import gaussian_log_prob

from .reporting import pages, tables
from .reporting.tables import Cell

PAGE = Path(__file__).parents[1] / "docs" / "drop-ins.md"
EXAMPLES, BATCH, LATENTS, SIGMA = 20_000, 256, 10, 0.2
BATCHES = 32
COLUMNS = [
    "estimate", "log q(z)", ("mutual information", "MI"), ("total correlation", "TC"), "off by",
]  # fmt: skip


def data_set():
    """(mu, logvar) of all examples, and the generator that batches are drawn with."""
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(EXAMPLES, LATENTS, generator=generator)
    return mu, torch.full_like(mu, 2 * math.log(SIGMA)), generator


def ours(z, mu, logvar, **options):
    terms = kl_decomposition(z, mu, logvar, **options)
    return terms.mutual_information.mean(), terms.total_correlation.mean()


def rtqichen(z, mu, logvar, **options):
    bit = z.new_zeros(len(z), 1)
    params = torch.stack([mu, 0.5 * logvar], -1)

    def objective(**weights):
        given = bit, bit, z, params, EXAMPLES
        return compat.rtqichen_tcvae_elbo(*given, lamb=1, tcvae=True, **weights, **options)[0]

    log_px = objective(beta=0, include_mutinfo=False)
    mi, tc = objective(beta=0), objective(beta=1, include_mutinfo=False)
    return (log_px - mi).mean(), (log_px - tc).mean()


def pythae(z, mu, logvar, **options):
    pixel = z.new_zeros(len(z), 1)

    def kld(**weights):
        given = pixel, pixel, mu, logvar, z, EXAMPLES
        return compat.pythae_beta_tcvae_loss(*given, **weights, **options)[2]

    return kld(alpha=1, beta=0, gamma=0), kld(alpha=0, beta=1, gamma=0)


def disvae(z, mu, logvar, **options):
    pixel, stored = z.new_zeros(len(z), 1), collections.defaultdict(list)
    loss = compat.DisvaeBtcvaeLoss(EXAMPLES, **options)
    loss(pixel, pixel, (mu, logvar), False, stored, z)
    return torch.tensor(stored["mi_loss"][0]), torch.tensor(stored["tc_loss"][0])


def antixk(z, mu, logvar):
    pixel = z.new_zeros(len(z), 1)
    parts = compat.AntixKBetaTCVAELoss()(pixel, pixel, mu, logvar, z, M_N=len(z) / EXAMPLES)
    return parts["MI_Loss"], parts["TC_Loss"]


# (mutual information, total correlation) of a batch; the code that a public loss stands in for.
EXACT = Cell('`kl_decomposition`, `"aggregate"`: exact', short="exact")
ESTIMATES = {
    Cell('`kl_decomposition`, `"stratified"`', short="stratified"): functools.partial(
        ours, dataset_size=EXAMPLES, estimator="stratified"
    ),
    Cell('`kl_decomposition`, `"weighted"`', short="weighted"): functools.partial(
        ours, dataset_size=EXAMPLES, estimator="weighted"
    ),
    Cell("`rtqichen_tcvae_elbo`", short="rtqichen"): rtqichen,
    Cell("`rtqichen_tcvae_elbo`, `mss=True`", short="rtqichen, mss"): functools.partial(
        rtqichen, mss=True
    ),
    Cell("`pythae_beta_tcvae_loss`", short="pythae"): pythae,
    Cell("`pythae_beta_tcvae_loss`, `use_mss=False`", short="pythae, no mss"): functools.partial(
        pythae, use_mss=False
    ),
    Cell("`DisvaeBtcvaeLoss`", short="disvae"): disvae,
    Cell("`DisvaeBtcvaeLoss`, `is_mss=False`", short="disvae, no mss"): functools.partial(
        disvae, is_mss=False
    ),
    Cell("`AntixKBetaTCVAELoss`", short="antixk"): antixk,
}


@torch.no_grad()
def measured(batches=BATCHES):
    """{estimate: [batches, 4]}, means over a batch by COLUMNS."""
    mu, logvar, generator = data_set()
    index = torch.randperm(EXAMPLES, generator=generator)[: batches * BATCH]
    found = collections.defaultdict(list)
    for of_batch in index.split(BATCH):
        q = mu[of_batch], logvar[of_batch]
        z = q[0] + SIGMA * torch.randn(q[0].shape, generator=generator)
        own = gaussian_log_prob(z, *q).mean()
        whole = functools.partial(ours, estimator="aggregate", dataset=(mu, logvar))
        exact = None
        for name, estimate in {EXACT: whole, **ESTIMATES}.items():
            mi, tc = estimate(z, *q)
            exact = tc if exact is None else exact
            found[name].append(torch.stack([own - mi, mi, tc, tc - exact]))
    return {name: torch.stack(rows).double() for name, rows in found.items()}


def mean_and_error(values):
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def shown(mean, error):
    """The standard error rounded up; nothing for what is off by nothing."""
    if error == 0:
        return ""
    return f"{round(mean.item(), 2) + 0.0:.2f} ± {math.ceil(100 * error) / 100:.2f}"


def table(found):
    rows = []
    for name, values in found.items():
        cells = [shown(m, e) for m, e in zip(*mean_and_error(values), strict=True)]
        rows.append([name, *cells])
    return tables.Table(COLUMNS, rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.total_correlation", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/drop-ins.md")
    write = parser.parse_args(arguments).write
    result = table(measured())
    rich.get_console().print(tables.terminal(result))
    if write:
        old = PAGE.read_text(encoding="utf-8")
        new = pages.filled(old, "total-correlation", lambda: tables.markdown(result))
        PAGE.write_text(new, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
