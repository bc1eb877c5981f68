"""The KL in three terms: against definitions, the exact aggregate posterior, and its estimators."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from fused_elbo import elbo_loss, elbo_tc_loss, kl_decomposition, rsample_kl
from fused_elbo.estimators.reference import reference, textbook
from helpers.launches import watch
from helpers.machine import KERNELS
from helpers.samples import IMPLS, normal

F32, F64 = torch.float32, torch.float64


def posterior(examples, cols, device="cpu", dtype=F64):
    """(z, mu, logvar) of a data set whose latents are correlated over examples."""
    mu = 2 * normal(examples, 1, seed=5) + normal(examples, cols, seed=1)
    logvar = -1 + 0.5 * normal(examples, cols, seed=2)
    z = mu + torch.exp(0.5 * logvar) * normal(examples, cols, seed=3)
    return [t.to(device, dtype) for t in (z, mu, logvar)]


def by_scipy(z, mu, logvar, all_mu, all_logvar, log_weights):
    """The terms for log weights [B, N]."""
    tensors = z, mu, logvar, all_mu, all_logvar, log_weights
    z, mu, logvar, all_mu, all_logvar, log_weights = (t.numpy() for t in tensors)
    pairs = stats.norm.logpdf(z[:, None], all_mu, np.exp(0.5 * all_logvar))
    joint = special.logsumexp(pairs.sum(-1) + log_weights, axis=1)
    marginals = special.logsumexp(pairs + log_weights[..., None], axis=1).sum(-1)
    own = stats.norm.logpdf(z, mu, np.exp(0.5 * logvar)).sum(-1)
    terms = own - joint, joint - marginals, marginals - stats.norm.logpdf(z).sum(-1)
    return [torch.as_tensor(t) for t in terms]


def stratified_weights(batch, size):
    """Written out from the paper: a matrix whose rows add up to 1."""
    others = batch - 1
    weights = torch.full((batch, batch), 1 / others, dtype=F64)
    for i in range(batch):
        weights[i, i] = 1 / size
        weights[i, (i + 1) % batch] = (size - others) / (size * others)
    assert torch.allclose(weights.sum(1), torch.ones(batch, dtype=F64))
    return weights


@pytest.mark.parametrize("batch", [2, 3, 70])
@pytest.mark.parametrize("estimator", ["stratified", "weighted", "aggregate"])
@IMPLS
def test_against_scipy(estimator, batch, impl, device):
    z, mu, logvar = posterior(batch, 3)
    size = 1000
    weights = {
        "stratified": stratified_weights(batch, size),
        "weighted": torch.full((batch, batch), 1 / (size * batch), dtype=F64),
        "aggregate": torch.full((batch, batch), 1 / batch, dtype=F64),
    }
    expected = by_scipy(z, mu, logvar, mu, logvar, weights[estimator].log())
    arguments = [t.to(device) for t in (z, mu, logvar)]
    arguments += [] if estimator == "aggregate" else [size]
    found = kl_decomposition(*arguments, estimator=estimator, impl=impl)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.cpu(), e, rtol=1e-11, atol=1e-11)


@IMPLS
def test_of_a_data_set(impl, device):
    """A data set of which the batch is a part."""
    z, mu, logvar = posterior(50, 3)
    batch = [t[:7] for t in (z, mu, logvar)]
    expected = by_scipy(*batch, mu, logvar, torch.full((7, 50), -math.log(50), dtype=F64))
    found = kl_decomposition(
        *(t.to(device) for t in batch),
        estimator="aggregate",
        dataset=(mu.to(device), logvar.to(device)),
        impl=impl,
    )
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.cpu(), e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("estimator", ["stratified", "weighted", "aggregate"])
@IMPLS
def test_gradients(estimator, impl, device):
    """All three terms by finite differences; a data set's too."""
    leaves = [t.requires_grad_() for t in posterior(4, 2, device)]
    size = [] if estimator == "aggregate" else [9]
    assert torch.autograd.gradcheck(
        lambda *q: kl_decomposition(*q, *size, estimator=estimator, impl=impl), leaves
    )
    if estimator == "aggregate":
        everything = [t.requires_grad_() for t in posterior(6, 2, device)[1:]]
        fixed = [t.detach() for t in leaves]
        assert torch.autograd.gradcheck(
            lambda *d: kl_decomposition(*fixed, estimator="aggregate", dataset=d, impl=impl),
            everything,
        )


def test_terms_add_up_to_the_kl(device):
    """Their sum is log q(z|x) - log p(z), whatever the estimator."""
    z, mu, logvar = posterior(20, 4, device)
    exact = textbook.gaussian_log_prob(z, mu, logvar) + 0.5 * (
        z.square() + math.log(2 * math.pi)
    ).sum(-1)
    for estimator, size in (("stratified", [100]), ("weighted", [100]), ("aggregate", [])):
        terms = kl_decomposition(z, mu, logvar, *size, estimator=estimator, impl=KERNELS)
        torch.testing.assert_close(sum(terms), exact)


def minibatches(size, batch, draws):
    """Indices [draws, batch] without repeats; the first of each is that of z."""
    generator = torch.Generator().manual_seed(11)
    return torch.rand(draws, size, generator=generator).argsort(1)[:, :batch]


@pytest.mark.parametrize(("size", "batch"), [(40, 2), (40, 8), (40, 39), (9, 9)])
def test_stratified_weights_are_unbiased(size, batch):
    """The mean of q^(z) / q(z) over batches is 1: in 4 standard errors, at N != B and at N = B.

    Weights down a column, as four public programs have them, make 1.5 to 20 of it.
    """
    z, mu, logvar = posterior(size, 2)
    draws = 20_000
    index = minibatches(size, batch, draws)
    first = index[:, 0]
    q = textbook.gaussian_log_prob(z[:, None], mu, logvar)  # of z_i at every component
    exact = torch.logsumexp(q, 1) - math.log(size)
    # The public function, in batches whose first example is looked at.
    terms = [
        kl_decomposition(z[i], mu[i], logvar[i], size).mutual_information[0] for i in index[:2000]
    ]
    own = q[first[:2000], first[:2000]]
    assert torch.allclose(
        own - torch.stack(terms),
        torch.logsumexp(
            q[first[:2000, None], index[:2000]]
            + textbook.stratified_log_weights(torch.tensor([0]), batch, size, F64),
            1,
        ),
    )
    log_weights = textbook.stratified_log_weights(torch.tensor([0]), batch, size, F64)
    estimate = torch.logsumexp(q[first[:, None], index] + log_weights, 1)
    ratio = torch.exp(estimate - exact[first])
    error = ratio.std() / math.sqrt(draws)
    assert abs(ratio.mean() - 1) < 4 * error + 1e-6
    # The same test sees weights in the wrong places.
    wrong = textbook.stratified_log_weights(torch.tensor([1]), batch, size, F64)
    if 2 < batch < size - 1:
        off = torch.exp(torch.logsumexp(q[first[:, None], index] + wrong, 1) - exact[first])
        assert abs(off.mean() - 1) > 4 * off.std() / math.sqrt(draws)


def test_agrees_with_the_exact_aggregate_posterior():
    """The total correlation over a data set, by batches of a tenth: too high by Jensen's bias of
    log q, which is small beside what the weighted estimate is off by.
    """
    size, batch = 1000, 100
    z, mu, logvar = posterior(size, 4)
    exact = kl_decomposition(z, mu, logvar, estimator="aggregate").total_correlation.mean()
    parts = {"stratified": [], "weighted": []}
    for index in torch.randperm(size, generator=torch.Generator().manual_seed(1)).split(batch):
        for estimator, found in parts.items():
            q = (t[index] for t in (z, mu, logvar))
            found.append(kl_decomposition(*q, size, estimator=estimator).total_correlation)
    stratified, weighted = (torch.cat(found) for found in parts.values())
    error = stratified.std() / math.sqrt(size)
    assert abs(stratified.mean() - exact) < 4 * error
    assert weighted.mean() - exact > 3 * math.log(size) - 2


def test_one_op_whatever_the_size(monkeypatch, device):
    """One op computes all three terms: four densities by themselves took longer than the compiled
    textbook.
    """
    ran = watch(monkeypatch)
    for estimator, size in (("stratified", [100]), ("weighted", [100]), ("aggregate", [])):
        for shape in ((4, 1), (9, 5)):
            leaves = [t.requires_grad_() for t in posterior(*shape, device)]
            terms = kl_decomposition(*leaves, *size, estimator=estimator, impl=KERNELS)
            torch.autograd.grad(sum(t.sum() for t in terms), leaves)
            assert ran == ["kl_decomposition", "kl_decomposition_backward"]
            ran.clear()


def test_in_parts(monkeypatch):
    """Rows are split from so many elements on, in value and gradients."""

    def run():
        leaves = [t.requires_grad_() for t in posterior(11, 3)]
        terms = kl_decomposition(*leaves, 50, impl="reference")
        return [*terms, *torch.autograd.grad(sum(t.square().sum() for t in terms), leaves)]

    whole = run()
    monkeypatch.setattr(reference, "COMPARED", 11 * 3 * 2)
    for a, b in zip(whole, run(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class TestLoss:
    def arguments(self, dtype=F64):
        z, mu, logvar = posterior(6, 2, dtype=dtype)
        x = (normal(6, 5, seed=8) > 0).to(dtype)
        return normal(6, 5, seed=7, dtype=dtype), x, z, mu, logvar

    def test_weights_of_one_are_the_elbo(self):
        recon, x, z, mu, logvar = self.arguments()
        kl = textbook.gaussian_log_prob(z, mu, logvar) - textbook.gaussian_log_prob(
            z, torch.zeros_like(z), torch.zeros_like(z)
        )
        found = elbo_tc_loss(recon, x, z, mu, logvar, 30)
        torch.testing.assert_close(found, elbo_loss(recon, x, kl=kl))

    @pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
    def test_each_weight_is_of_its_term(self, reduction):
        arguments = self.arguments()
        weights = {"mutual_information": 0.5, "total_correlation": 6.0, "dimension_wise": 2.0}
        parts = elbo_tc_loss(*arguments, 30, **weights, reduction=reduction, return_parts=True)
        expected = parts.nll + sum(w * getattr(parts, name) for name, w in weights.items())
        torch.testing.assert_close(parts.loss, expected)
        terms = kl_decomposition(*arguments[2:], 30)
        for name, term in terms._asdict().items():
            reduced = term if reduction == "none" else getattr(term, reduction)()
            torch.testing.assert_close(getattr(parts, name), reduced)

    @IMPLS
    def test_trains(self, impl, device):
        """A step in float32 through sample, decoder and loss."""
        torch.manual_seed(0)
        encoder, decoder = torch.nn.Linear(5, 4).to(device), torch.nn.Linear(2, 5).to(device)
        x = torch.rand(8, 5, device=device).round()
        mu, logvar = encoder(x).chunk(2, -1)
        z, _ = rsample_kl(mu, logvar, impl=impl)
        loss = elbo_tc_loss(decoder(z), x, z, mu, logvar, 100, total_correlation=6.0, impl=impl)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in encoder.parameters())
        assert encoder.weight.grad.abs().max() > 0


Q = [torch.rand(4, 2) for _ in range(3)]
BAD = {
    "no size": (Q, {}, ValueError, "needs the dataset_size"),
    "small size": (Q, {"dataset_size": 3}, ValueError, "dataset_size must be at least 4"),
    "size of a float": (Q, {"dataset_size": 9.0}, TypeError, "dataset_size must be an int"),
    "shapes": ([Q[0], Q[1], Q[2][:1]], {"dataset_size": 9}, ValueError, r"logvar \(1, 2\)"),
    "samples": ([q[None] for q in Q], {"dataset_size": 9}, ValueError, r"z \(1, 4, 2\)"),
    "one example": ([q[:1] for q in Q], {"dataset_size": 9}, ValueError, "at least 2"),
    "estimator": (Q, {"dataset_size": 9, "estimator": "mss"}, ValueError, "'stratified'"),
    "data set": (Q, {"dataset_size": 9, "dataset": Q[1:]}, ValueError, "takes no dataset"),
    "both": (
        Q,
        {"dataset_size": 9, "dataset": Q[1:], "estimator": "aggregate"},
        ValueError,
        "not a dataset_size",
    ),
    "small data set": (
        Q,
        {"dataset": [q[:3] for q in Q[1:]], "estimator": "aggregate"},
        ValueError,
        "has 3 examples, of which z are 4",
    ),
    "latents of the data set": (
        Q,
        {"dataset": [q[:, :1] for q in Q[1:]], "estimator": "aggregate"},
        ValueError,
        r"dataset's mu \(4, 1\)",
    ),
    "dtypes": (
        [Q[0], Q[1].long(), Q[2]],
        {"dataset_size": 9},
        TypeError,
        "mu must have one of the dtypes",
    ),
}


@pytest.mark.parametrize(("q", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(q, options, error, message):
    with pytest.raises(error, match=message):
        kl_decomposition(*q, **options)
    with pytest.raises(error, match=message):
        elbo_tc_loss(torch.rand(len(q[0]), 3), torch.rand(len(q[0]), 3), *q, **options)


@pytest.mark.parametrize("name", ["mutual_information", "total_correlation", "dimension_wise"])
def test_weights_are_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number"):
        elbo_tc_loss(torch.rand(4, 3), torch.rand(4, 3), *Q, 9, **{name: torch.tensor(1.0)})
