"""A mask over events: left out of the likelihood, with a gradient of 0, whatever is there."""

import functools

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Laplace, Normal, Poisson

import fused_elbo
from fused_elbo import ELBOLoss, elbo_loss
from helpers.machine import KERNELS

IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
F64 = torch.float64
B, EVENTS, CLASSES = 4, (3, 5), 6
MASKS = {
    "of each event": (B, *EVENTS),
    "of each example": (B, 1, 1),
    "of the events alone": EVENTS,
}


def oracle(name, recon, x, width):
    """log p of each event, in float64."""
    recon, x = recon.double(), x.double()
    if name == "bernoulli":
        return Bernoulli(logits=recon, validate_args=False).log_prob(x)
    if name == "gaussian":
        return Normal(recon, (0.5 * width).exp()).log_prob(x)
    if name == "laplace":
        return Laplace(recon, width.exp()).log_prob(x)
    if name == "poisson":
        return Poisson(recon.exp()).log_prob(x)
    return Categorical(logits=recon).log_prob(x)


def operands(name, samples, device):
    """(recon, x); with K samples of recon, or without."""
    shape = (*samples, B, *EVENTS)
    recon = torch.randn(*shape, CLASSES) if name == "categorical" else torch.randn(shape)
    x = {
        "bernoulli": torch.rand(B, *EVENTS),
        "poisson": torch.rand(B, *EVENTS).mul(5).round(),
        "categorical": torch.randint(CLASSES, (B, *EVENTS)),
    }.get(name, torch.randn(B, *EVENTS))
    return recon.to(device), x.to(device)


@IMPLS
@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "laplace", "poisson", "categorical"])
@pytest.mark.parametrize("samples", [(), (2,)], ids=["one", "samples"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=list(MASKS))
class TestMask:
    def test_events_that_count(self, name, samples, shape, impl, device):
        recon, x = operands(name, samples, device)
        mask = torch.rand(shape, device=device) < 0.6
        full = mask.expand(B, *EVENTS)
        width = torch.tensor(0.3, device=device, requires_grad=True)
        named = {"gaussian": "recon_logvar", "laplace": "log_scale"}
        options = {named[name]: width} if name in named else {}
        shown = full.unsqueeze(-1) if name == "categorical" else full
        bad = torch.where(shown, recon, torch.nan).requires_grad_()
        bad_x = torch.where(full, x, 99 if name == "categorical" else torch.nan)
        events = full.expand(*samples, B, *EVENTS)
        exact_recon = recon.double().requires_grad_()
        exact_width = width.detach().double().requires_grad_()
        exact = torch.where(events, oracle(name, exact_recon, x, exact_width), 0.0)
        expected = -exact.flatten(len(samples) + 1).sum(-1)

        nll = getattr(fused_elbo, f"{name}_nll")(
            bad, bad_x, *options.values(), mask=mask, impl=impl
        )
        torch.testing.assert_close(nll.double(), expected, rtol=1e-5, atol=1e-4)
        leaves = [bad, width] if options else [bad]
        exact_leaves = [exact_recon, exact_width] if options else [exact_recon]
        found = torch.autograd.grad(nll.sum(), leaves)
        wanted = torch.autograd.grad(expected.sum(), exact_leaves, retain_graph=True)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f.double(), w, rtol=1e-4, atol=1e-4)
        hidden = ~(events.unsqueeze(-1) if name == "categorical" else events).expand(bad.shape)
        assert (found[0][hidden] == 0).all()

        kl = torch.rand(B, device=device)
        of_loss = functools.partial(elbo_loss, bad, bad_x, kl=kl, likelihood=name, mask=mask)
        per_example = expected.mean(0) if samples else expected
        for reduction in ("mean", "sum", "none"):
            loss = of_loss(reduction=reduction, impl=impl, **options)
            reduced = per_example + kl
            reduced = reduced if reduction == "none" else getattr(reduced, reduction)()
            torch.testing.assert_close(loss.double(), reduced, rtol=1e-5, atol=1e-4)
            (gradient,) = torch.autograd.grad(loss.sum(), bad)
            assert (gradient[hidden] == 0).all()
            assert gradient.isfinite().all()


@IMPLS
def test_all_and_nothing(impl, device):
    recon, x = torch.randn(B, 7, device=device), torch.rand(B, 7, device=device)
    everything = torch.ones(B, 7, dtype=torch.bool, device=device)
    loss = ELBOLoss(impl=impl)
    kl = torch.zeros(B, device=device)
    torch.testing.assert_close(
        loss(recon, x, kl=kl, mask=everything), loss(recon, x, kl=kl), rtol=1e-6, atol=0
    )
    assert loss(recon, x, kl=kl, mask=~everything) == 0
    half = loss(recon.half(), x, kl=kl, mask=~everything)
    assert half == 0


@IMPLS
def test_counts_without_some_genes(impl, device):
    """As of the tensors that do not have them."""
    kept = torch.tensor([True, False, True, True, False, True], device=device)
    x = torch.rand(B, 6, device=device).mul(4).round()
    t = [torch.randn(B, 6, device=device) for _ in range(3)]
    bad = [torch.where(kept, a, torch.nan).requires_grad_() for a in t]
    few = [a[:, kept].clone().requires_grad_() for a in t]
    nb, multinomial = fused_elbo.negative_binomial_nll, fused_elbo.multinomial_nll
    counts = torch.where(kept, x, torch.nan)
    for found, wanted, which in (
        (
            nb(bad[0], counts, bad[1], zero_logits=bad[2], mask=kept, impl=impl),
            nb(few[0], x[:, kept], few[1], zero_logits=few[2], impl=impl),
            slice(3),
        ),
        (
            multinomial(bad[0], counts, mask=kept, impl=impl),
            multinomial(few[0], x[:, kept], impl=impl),
            slice(1),
        ),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        for f, w in zip(
            torch.autograd.grad(found.sum(), bad[which]),
            torch.autograd.grad(wanted.sum(), few[which]),
            strict=True,
        ):
            torch.testing.assert_close(f[:, kept], w, rtol=1e-4, atol=1e-5)
            assert (f[:, ~kept] == 0).all()


@IMPLS
@pytest.mark.parametrize("inflated", [False, True], ids=["plain", "zero-inflated"])
def test_genes_outside_of_the_mask_keep_their_share(inflated, impl, device):
    """As of means whose softmax is over all genes, and of the genes that are left."""
    kept = torch.tensor([True, False, True, True, False, True], device=device)
    logits = torch.randn(2, B, 6, device=device).requires_grad_()
    log_library = torch.rand(B, 1, device=device).requires_grad_()
    widths = [torch.randn(B, 6, device=device) for _ in range(1 + inflated)]
    x = torch.rand(B, 6, device=device).mul(4).round()
    bad = [torch.where(kept, t, torch.nan).requires_grad_() for t in widths]
    few = [t[:, kept].double().requires_grad_() for t in widths]
    named = {"zero_logits": bad[1]} if inflated else {}
    found = fused_elbo.softmax_negative_binomial_nll(
        logits, torch.where(kept, x, torch.nan), bad[0], log_library, mask=kept, impl=impl, **named
    )
    log_mean = log_library.double() + torch.log_softmax(logits.double(), -1)
    named = {"zero_logits": few[1]} if inflated else {}
    wanted = fused_elbo.negative_binomial_nll(
        log_mean[..., kept], x[:, kept], few[0], impl="reference", **named
    )
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    shared = [logits, log_library]
    found = torch.autograd.grad(found.sum(), [*shared, *bad])
    wanted = torch.autograd.grad(wanted.sum(), [*shared, *few])
    for f, w in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-5)
    for f, w in zip(found[2:], wanted[2:], strict=True):
        torch.testing.assert_close(f[:, kept].double(), w, rtol=1e-4, atol=1e-5)
        assert (f[:, ~kept] == 0).all()


@IMPLS
@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "negative_binomial", "categorical"])
class TestImportanceWeighted:
    """The bound of the events that are left, by hand in float64."""

    kept = torch.tensor([True, False, True, True, False, True])

    def operands(self, name, device):
        """recon [3, B, 6], x [B, 6] and a width [B, 6], whole; the width's name."""
        recon = torch.randn(3, B, 6, *(CLASSES,) * (name == "categorical"), device=device)
        x = torch.rand(B, 6, device=device)
        if name == "negative_binomial":
            x = x.mul(4).round()
        if name == "categorical":
            x = torch.randint(CLASSES, (B, 6), device=device)
        width = {"gaussian": "recon_logvar", "negative_binomial": "log_theta"}.get(name)
        return recon, x, torch.randn(B, 6, device=device), width

    def spoiled(self, name, recon, x, width, kept):
        """The same with NaN, or a class that there is none of, behind the mask."""
        shown = kept.unsqueeze(-1) if name == "categorical" else kept
        x = torch.where(kept, x, 99 if name == "categorical" else torch.nan)
        width = torch.where(kept, width, torch.nan).requires_grad_()
        return torch.where(shown, recon, torch.nan).requires_grad_(), x, width

    def expected(self, name, recon, x, width, option, log_ratio, kept):
        """The losses of the examples, of tensors without the events."""
        recon, width = recon[:, :, kept].double(), width[:, kept].double()
        options = {option: width} if option else {}
        few = getattr(fused_elbo, f"{name}_nll")
        nll = torch.stack([few(r, x[:, kept], *options.values(), impl="reference") for r in recon])
        return torch.log(torch.tensor(3.0)) - torch.logsumexp(log_ratio.double() - nll, 0)

    def test_all_samples_at_once(self, name, impl, device):
        kept = self.kept.to(device)
        recon, x, width, option = self.operands(name, device)
        bad, bad_x, bad_width = self.spoiled(name, recon, x, width, kept)
        recon.requires_grad_()
        width.requires_grad_()
        log_ratio = torch.randn(3, B, device=device)
        wanted = self.expected(name, recon, x, width, option, log_ratio, kept)
        options = {option: bad_width} if option else {}
        leaves, exact_leaves = ([bad, bad_width], [recon, width]) if option else ([bad], [recon])
        exact = torch.autograd.grad(wanted.sum(), exact_leaves)
        for reduction in ("none", "sum", "mean"):
            found = fused_elbo.iwae_loss(
                bad,
                bad_x,
                log_ratio,
                likelihood=name,
                mask=kept,
                reduction=reduction,
                impl=impl,
                **options,
            )
            reduced = wanted if reduction == "none" else getattr(wanted, reduction)()
            torch.testing.assert_close(found.double(), reduced, rtol=1e-5, atol=1e-5)
            scale = 1 / B if reduction == "mean" else 1
            for f, e in zip(torch.autograd.grad(found.sum(), leaves), exact, strict=True):
                torch.testing.assert_close(f, e * scale, rtol=1e-4, atol=1e-5)
                events = f[..., ~kept, :] if f.dim() == 4 else f[..., ~kept]
                assert (events == 0).all()

    def test_in_chunks(self, name, impl, device):
        """A decoder whose events behind the mask are NaN."""
        kept = self.kept.to(device)
        recon, x, width, option = self.operands(name, device)
        bad, bad_x, bad_width = self.spoiled(name, recon[0, 0], x, width, kept)
        mu, logvar = (torch.randn(B, 2, device=device).requires_grad_() for _ in range(2))
        options = {option: bad_width} if option else {}
        options |= {"likelihood": name, "mask": kept, "impl": impl}
        drawn = {"generator": torch.Generator(device).manual_seed(5)}
        decoder = lambda z: bad + z.sum(-1).reshape(*z.shape[:2], *(1,) * bad.dim())  # noqa: E731
        leaves = [mu, logvar, bad, *([bad_width] if option else [])]
        chunked = fused_elbo.chunked_iwae_loss(
            decoder, bad_x, mu, logvar, 3, chunk_size=2, **options, **drawn
        )
        found = torch.autograd.grad(chunked, leaves)
        seen = []
        drawn = {"generator": torch.Generator(device).manual_seed(5)}
        keep = lambda z: seen.append(z.detach()) or decoder(z)  # noqa: E731
        fused_elbo.chunked_iwae_loss(keep, bad_x, mu, logvar, 3, chunk_size=3, **options, **drawn)
        (z,) = seen
        eps = (z - mu.detach()) / (0.5 * logvar.detach()).exp()
        z = mu + (0.5 * logvar).exp() * eps
        log_ratio = (0.5 * (eps.square() - z.square() + logvar)).sum(-1)
        whole = torch.where(bad.isnan(), 0.0, bad)
        recon = whole + z.sum(-1).reshape(3, B, *(1,) * bad.dim())
        wanted = self.expected(name, recon, x, bad_width, option, log_ratio, kept).mean()
        torch.testing.assert_close(chunked.double(), wanted, rtol=1e-5, atol=1e-5)
        exact = torch.autograd.grad(wanted, leaves)
        for f, e in zip(found, exact, strict=True):
            torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)
        hidden = found[2][~kept]
        assert (hidden == 0).all()


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (torch.ones(B, 7), TypeError, "mask must have one of the dtypes bool"),
        (torch.ones(2, B, 7, dtype=torch.bool), ValueError, "mask .* does not broadcast"),
        ([True], TypeError, "mask must be a"),
    ],
    ids=["floats", "larger", "a list"],
)
def test_bad_masks(mask, error, words):
    recon = x = torch.rand(B, 7)
    with pytest.raises(error, match=words):
        fused_elbo.bernoulli_nll(recon, x, mask=mask)
    with pytest.raises(error, match=words):
        elbo_loss(recon, x, kl=x[:, 0], mask=mask)
    with pytest.raises(error, match=words):
        fused_elbo.iwae_loss(recon.expand(2, B, 7), x, torch.zeros(2, B), mask=mask)
    with pytest.raises(error, match=words):
        fused_elbo.chunked_iwae_loss(
            lambda z: recon.expand(len(z), B, 7), x, x[:, :2], x[:, :2], 2, chunk_size=1, mask=mask
        )
    with pytest.raises(error, match=words):
        fused_elbo.softmax_negative_binomial_nll(recon, x, 0.0, x[:, 0], mask=mask)
