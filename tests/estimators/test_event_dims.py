"""Latents of any rank: sums over as many last dimensions as asked, of tensors as they lie."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

import fused_elbo
from fused_elbo import (
    Mixture,
    chunked_iwae_loss,
    elbo_loss,
    gaussian_kl,
    gaussian_log_prob,
    importance_weights,
    iwae_loss,
    rsample_kl,
    rsample_log_ratio,
)
from fused_elbo.estimators.diagnostics import active_units, kl_per_dimension
from fused_elbo.estimators.dispatch import gaussian_calls
from fused_elbo.estimators.reference import noise
from helpers.copies import Copies
from helpers.machine import KERNELS
from helpers.samples import IMPLS, normal

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
SHAPE = (2, 3, 2, 5)
K = 2


def last(event_dims):
    return tuple(range(-event_dims, 0))


def total(terms, event_dims):
    """The sum over no dimension, where torch's for () is over all."""
    return terms.sum(last(event_dims)) if event_dims else terms


def distribution(mu, logvar):
    return Normal(mu.double(), (0.5 * logvar.double()).exp())


def textbook(q, event_dims, z=None):
    """(KL, log q(z) of z, log p(z) - log q(z)) by torch.distributions, in float64."""
    mu, logvar, *prior = q
    prior = [torch.zeros((), dtype=F64, device=mu.device) if t is None else t for t in prior]
    of_q, of_p = distribution(mu, logvar), distribution(*prior)
    kl = total(kl_divergence(of_q, of_p), event_dims)
    if z is None:
        return kl
    log_q = of_q.log_prob(z)
    return kl, total(log_q, event_dims), total(of_p.log_prob(z) - log_q, event_dims)


def operands(shape=SHAPE, dtype=F64, device="cpu"):
    return [scale * normal(*shape, seed=i, device=device).to(dtype) for i, scale in
            enumerate((1.0, 0.5, 0.3, 0.3))]  # fmt: skip


def leaves_of(tensors):
    return [t if t is None else t.detach().requires_grad_() for t in tensors]


def compare(actual, expected, actual_leaves, expected_leaves, rtol=1e-9):
    """Values, and gradients of a weighted sum of all values."""
    gradients = []
    for values, leaves in ((actual, actual_leaves), (expected, expected_leaves)):
        weights = [normal(*v.shape, seed=11 + i).to(v) for i, v in enumerate(values)]
        loss = sum((w * v).sum().double() for w, v in zip(weights, values, strict=True))
        gradients.append(torch.autograd.grad(loss, [t for t in leaves if t is not None]))
    for a, e in zip((*actual, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert a.shape == e.shape
        torch.testing.assert_close(a.double(), e.double(), rtol=rtol, atol=rtol)
    return gradients[0]


def sampled(z, q):
    """z again, as a function of q: of the noise that it was drawn from."""
    mu, logvar = (t.double() for t in q[:2])
    std = (0.5 * logvar).exp()
    return mu + std * ((z.double() - mu) / std).detach()


def check_all(q, event_dims, impl, rtol=1e-9):
    """The four functions on leaves laid out as ``q`` is, against the textbook at the same noise.

    Returns z and the gradients of rsample_kl.
    """
    options = {"event_dims": event_dims, "impl": impl}
    own, other = leaves_of(q), leaves_of(q)
    compare([gaussian_kl(*own, **options)], [textbook(other, event_dims)], own, other, rtol)

    x = normal(*torch.broadcast_shapes(*(t.shape for t in q[:2])), seed=5).to(q[0])
    _, log_prob, _ = textbook(other, event_dims, x)
    found = gaussian_log_prob(x, *own[:2], **options)
    compare([found], [log_prob], own[:2], other[:2], rtol)

    z, found = rsample_kl(*own, **options)
    expected = sampled(z, other), textbook(other, event_dims)
    gradients = compare([z, found], expected, own, other, rtol)

    many, ratio = rsample_log_ratio(*own[:2], K, *own[2:], **options)
    expected = sampled(many, other)
    _, _, log_ratio = textbook(other, event_dims, expected)
    compare([many, ratio], [expected, log_ratio], own, other, rtol)
    assert many.shape == (K, *x.shape)
    return z, gradients


@IMPLS
@pytest.mark.parametrize("event_dims", range(5))
def test_against_the_textbook(event_dims, impl, device):
    check_all(operands(device=device), event_dims, impl)


@IMPLS
def test_standard_prior_and_numpys_integers(impl, device):
    q = [*operands(device=device)[:2], None, None]
    check_all(q, 3, impl)
    assert gaussian_kl(*q, event_dims=np.int64(2), impl=impl).shape == SHAPE[:2]


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def half_of(t):
    """The tensor as a half of one with twice the channels, as an encoder's output is chunked."""
    return torch.cat((t, t), 1).chunk(2, 1)[0]


LAYOUTS = {
    "channels_last": lambda q: [channels_last(t) for t in q],
    "half": lambda q: [half_of(t) for t in q],
    "channels_last half": lambda q: [channels_last(torch.cat((t, t), 1)).chunk(2, 1)[0] for t in q],
    "mixed": lambda q: [channels_last(q[0]), q[1], channels_last(q[2]), q[3]],
    "height innermost": lambda q: [t.transpose(2, 3).contiguous().transpose(2, 3) for t in q],
    "strided": lambda q: [torch.stack((t, t), -1).flatten(-2)[..., ::2] for t in q],
    "batch innermost": lambda q: [t.movedim(0, -1).contiguous().movedim(-1, 0) for t in q],
    "expanded": lambda q: [
        t[:1, :1].expand(SHAPE) if i % 2 else t[:, :1].expand(SHAPE) for i, t in enumerate(q)
    ],
}


@IMPLS
@pytest.mark.parametrize("event_dims", [0, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, event_dims, impl, device):
    q = LAYOUTS[layout](operands(device=device))
    z, gradients = check_all(q, event_dims, impl)
    follows = layout in ("channels_last", "channels_last half", "height innermost")
    if follows and (event_dims != 2 or layout == "height innermost"):
        strides = torch.empty_like(q[0]).stride()  # of a half without the gaps
        assert z.stride() == strides
        assert all(g.stride() == strides for g in gradients)


PRIORS = {
    "of channels": lambda m, s: (m[0, :, :1, :1], s[0, :, :1, :1]),
    "mean alone": lambda m, s: (m[0, :, :1, :1], None),
    "variance of places": lambda m, s: (None, s[0, 0]),
    "of examples": lambda m, s: (m[:, :1, :1, :1], s[:, :1, :1, :1]),
    "a number": lambda m, s: (m[0, 0, 0, 0], s[0, 0]),
}


@IMPLS
@pytest.mark.parametrize("event_dims", [0, 3])
@pytest.mark.parametrize("prior", PRIORS)
def test_broadcast_priors(prior, event_dims, impl, device):
    mu, logvar, *rest = operands(device=device)
    q = channels_last(mu), channels_last(logvar)
    check_all([*q, *PRIORS[prior](*rest)], event_dims, impl)


@IMPLS
def test_q_that_is_broadcast(impl, device):
    """A mean of each channel, a variance of each example: neither has the shape of all."""
    mu, logvar, *prior = operands(device=device)
    check_all([mu[0, :, :1, :1], logvar, *prior], 3, impl)
    check_all([mu[:, :, :, :1], logvar[:1, :1], None, None], 3, impl)


@IMPLS
def test_kl_per_channel_or_latent(impl, device):
    """The same by hand, as people write it: an unsqueeze or a sum less."""
    mu, logvar, *_ = operands(device=device)
    per_latent = gaussian_kl(mu, logvar, event_dims=0, impl=impl)
    assert per_latent.shape == SHAPE
    for event_dims in range(1, 5):
        found = gaussian_kl(mu, logvar, event_dims=event_dims, impl=impl)
        torch.testing.assert_close(found, per_latent.sum(last(event_dims)))
    assert gaussian_kl(mu[0, 0, 0, 0], logvar[0, 0, 0, 0], event_dims=0, impl=impl).shape == ()


def spy(monkeypatch, name):
    """The arguments of every call of an op."""
    seen, op = [], getattr(gaussian_calls.ops, name)
    monkeypatch.setattr(gaussian_calls.ops, name, lambda *a: seen.append(a) or op(*a))
    return seen


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "half", "height innermost"])
def test_read_as_they_lie(layout, device, monkeypatch):
    """The kernels get views of the tensors, with columns side by side: nothing is copied."""
    q = LAYOUTS.get(layout, list)(operands(device=device))
    for name, call in (
        ("gaussian_kl", lambda: gaussian_kl(*q, event_dims=3, impl=KERNELS)),
        ("rsample_kl", lambda: rsample_kl(*q, event_dims=3, impl=KERNELS)),
        ("rsample_log_ratio", lambda: rsample_log_ratio(q[0], q[1], K, *q[2:], event_dims=3,
                                                        impl=KERNELS)),
    ):  # fmt: skip
        seen = spy(monkeypatch, name)
        call()
        for given, tensor in zip(seen[0], q, strict=False):
            assert given.data_ptr() == tensor.data_ptr()
            assert given.shape == (2, 30)
            assert given.stride(1) == 1


@pytest.mark.parametrize(
    ("layout", "copies"),
    [("contiguous", 0), ("channels_last", 0), ("half", 0), ("channels_last half", 2)],
)
def test_copies(layout, copies, device):
    """Mean and log variance in halves of one channels_last tensor are copied once each, for forward
    and backward; in other tensors not at all.
    """
    leaves = leaves_of(operands(device=device)[:2])
    q = LAYOUTS.get(layout, list)(leaves)
    with Copies() as made:
        z, kl = rsample_kl(*q, event_dims=3, impl=KERNELS)
        torch.autograd.grad((z, kl), q, (torch.ones_like(z), torch.ones_like(kl)))
    assert [math.prod(shape) for shape in made.shapes] == [60] * copies


def test_a_prior_of_channels_is_not_copied_for_each_example(device, monkeypatch):
    mu, logvar, *prior = operands(device=device)
    seen = spy(monkeypatch, "gaussian_kl")
    gaussian_kl(mu, logvar, *(p[0, :, :1, :1] for p in prior), event_dims=3, impl=KERNELS)
    assert all(t.stride() == (0, 1) for t in seen[0][2:])


def noise_in(z, q):
    mu, logvar = (t.double() for t in q[:2])
    return (z - mu) / (0.5 * logvar).exp()


class TestNoise:
    """A function of the latent's place in its example, in the order in which the latents lie."""

    def stream(self, monkeypatch, device, rows, cols, draws=1):
        seed = torch.tensor(20140414, device=device)
        monkeypatch.setattr(noise, "draw_seed", lambda *_: seed)
        return noise.stream(seed, draws, rows, cols).double()

    def test_contiguous(self, device, monkeypatch):
        wanted = self.stream(monkeypatch, device, 2, 30, K).view(K, *SHAPE)
        q = operands(device=device)[:2]
        z, _ = rsample_kl(*q, event_dims=3, impl=KERNELS)
        torch.testing.assert_close(noise_in(z, q), wanted[0], rtol=1e-5, atol=1e-5)
        z, _ = rsample_log_ratio(*q, K, event_dims=3, impl=KERNELS)
        torch.testing.assert_close(noise_in(z, q), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("layout", ["half", "strided", "expanded", "batch innermost"])
    def test_strides_do_not_matter(self, layout, device, monkeypatch):
        """Where the latents of an example are in their own order."""
        wanted = self.stream(monkeypatch, device, 2, 30).view(SHAPE)
        q = LAYOUTS[layout](operands(device=device))[:2]
        z, _ = rsample_kl(*q, event_dims=3, impl=KERNELS)
        torch.testing.assert_close(noise_in(z, q), wanted, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("layout", ["channels_last", "channels_last half", "mixed"])
    def test_channels_last_is_drawn_as_it_lies(self, layout, device, monkeypatch):
        wanted = self.stream(monkeypatch, device, 2, 30).view(2, 2, 5, 3).permute(0, 3, 1, 2)
        q = LAYOUTS[layout](operands(device=device))[:2]
        z, _ = rsample_kl(*q, event_dims=3, impl=KERNELS)
        torch.testing.assert_close(noise_in(z, q), wanted, rtol=1e-5, atol=1e-5)
        assert z.is_contiguous(memory_format=torch.channels_last)

    def test_so_does_the_reference(self, device):
        q = LAYOUTS["channels_last"](operands(device=device))[:2]
        torch.manual_seed(3)
        z, _ = rsample_kl(*q, event_dims=3, impl="reference")
        torch.manual_seed(3)
        wanted = torch.randn(2, 2, 5, 3, dtype=F64, device=device).permute(0, 3, 1, 2)
        torch.testing.assert_close(noise_in(z, q), wanted)


class TestLosses:
    """The results go into the losses as they are."""

    @IMPLS
    def test_elbo_loss(self, impl, device):
        mu, logvar, *prior = operands(device=device)
        prior = [p[0, :, :1, :1] for p in prior]
        recon, x = normal(2, 3, 4, seed=7, device=device), torch.rand(2, 3, 4, device=device)
        for q in ((mu, logvar), (channels_last(mu), channels_last(logvar))):
            own, other = leaves_of([*q, *prior]), leaves_of([*q, *prior])
            _, kl = rsample_kl(*own, event_dims=3, impl=impl)
            given = elbo_loss(recon, x, kl=kl, impl=impl)
            computed = elbo_loss(
                recon, x, *other[:2], prior_mu=other[2], prior_logvar=other[3], impl=impl
            )
            compare([given], [computed], own, other)
            torch.testing.assert_close(kl, textbook(other, 3))

    @IMPLS
    @pytest.mark.parametrize("gradient", ["total", "path", "dreg"])
    def test_iwae_loss(self, gradient, impl, device):
        """As of the same latents in one row, at the same noise, whatever the gradient."""
        q = operands(device=device)[:2]
        x = torch.rand(2, 30, device=device)
        alpha = 1.0 if gradient == "path" else 0.0
        found = []
        for flat in (False, True):
            leaves = leaves_of([t.flatten(1) if flat else t for t in q])
            torch.manual_seed(5)
            z, log_ratio = rsample_log_ratio(
                *leaves, 2, gradient=gradient, event_dims=1 if flat else 3, impl=impl
            )
            loss = iwae_loss(z.view(2, 2, 30), x, log_ratio, alpha=alpha, impl=impl)
            gradients = torch.autograd.grad(loss, leaves)
            found.append((loss, *(g.view(SHAPE) for g in gradients)))
            assert importance_weights(log_ratio, impl=impl).bound.shape == (2,)
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)

    def test_a_gradient_that_is_biased_is_still_seen(self, device):
        mu, logvar, *_ = operands(device=device)
        z, log_ratio = rsample_log_ratio(mu, logvar, 4, event_dims=3, gradient="dreg")
        with pytest.raises(ValueError, match="alpha"):
            iwae_loss(z.flatten(2), torch.rand(2, 30, device=device), log_ratio, alpha=0.5)

    @IMPLS
    def test_chunked_iwae_loss(self, impl, device):
        """The decoder sees [k, B, C, H, W]; as of one row of latents."""
        q = [channels_last(t) for t in operands(device=device)[:2]]
        x, found = torch.rand(2, 3, device=device), []

        def decoder(z):
            assert z.shape[1:] == SHAPE
            return z.sum((-2, -1))

        rows = [t.permute(0, 2, 3, 1).flatten(1) for t in q]
        for flat in (False, True):
            leaves = leaves_of(rows if flat else q)
            torch.manual_seed(5)
            loss = chunked_iwae_loss(
                (lambda z: z.view(-1, 2, 10, 3).sum(2)) if flat else decoder,
                x, *leaves, 3, chunk_size=2, gradient="dreg", impl=impl,
            )  # fmt: skip
            gradients = torch.autograd.grad(loss, leaves)
            if flat:
                gradients = [g.view(2, 2, 5, 3).permute(0, 3, 1, 2) for g in gradients]
            found.append((loss, *gradients))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


@IMPLS
@pytest.mark.parametrize("event_dims", [0, 2, 3])
def test_empty_batch(event_dims, impl, device):
    mu, logvar = (torch.zeros(0, 3, 2, 5, device=device, requires_grad=True) for _ in range(2))
    z, kl = rsample_kl(mu, logvar, event_dims=event_dims, impl=impl)
    assert z.shape == mu.shape
    assert kl.shape == mu.shape[: 4 - event_dims]
    (gradient,) = torch.autograd.grad(z.sum() + kl.sum(), mu)
    assert gradient.shape == mu.shape


@IMPLS
def test_half_precision(impl, device):
    q = [channels_last(t) for t in operands(dtype=BF16, device=device)]
    z, _ = check_all(q, 3, impl, rtol=0.05)
    assert z.dtype == BF16
    assert gaussian_kl(*q, event_dims=3, impl=impl).dtype == F32


def test_autocast(device):
    """Sums stay in float32 whatever the region's dtype."""
    mu, logvar, *_ = operands(dtype=F32, device=device)
    with torch.autocast(mu.device.type, BF16):
        _, kl = rsample_kl(mu, logvar, event_dims=3)
        _, low = rsample_kl(mu.to(BF16), logvar.to(BF16), event_dims=3)
    assert kl.dtype == low.dtype == F32
    torch.testing.assert_close(kl.double(), textbook((mu, logvar, None, None), 3))


def check_compiled(q, dynamic, impl):
    """Sums over three dimensions and over none, one sample and K, in one graph."""

    def run(mu, logvar):
        one = rsample_kl(mu, logvar, event_dims=3, impl=impl)
        return *one, *rsample_log_ratio(mu, logvar, K, event_dims=0, impl=impl)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    own, other = leaves_of(q), leaves_of(q)
    z, kl, many, log_ratio = compiled(*own)
    assert z.stride() == q[0].stride()
    expected = sampled(many, other)
    _, _, ratio = textbook((*other, None, None), 0, expected)
    wanted = sampled(z, other), textbook((*other, None, None), 3), expected, ratio
    compare([z, kl, many, log_ratio], wanted, own, other, rtol=1e-4)


def test_compiled_kernels(device):
    """With strides that are symbols, which order the dimensions none the less."""
    q = [channels_last(t) for t in operands(dtype=F32, device=device)[:2]]
    check_compiled(q, dynamic=True, impl=KERNELS)


def test_compiled_reference():
    check_compiled(operands(dtype=F32)[:2], dynamic=False, impl="reference")


def test_torch_func():
    """vmap and forward mode, of the reference."""
    mu, logvar, *_ = operands()

    def kl(mu, logvar):
        return gaussian_kl(mu, logvar, event_dims=3, impl="reference")

    wanted = textbook((mu, logvar, None, None), 3)
    torch.testing.assert_close(torch.func.vmap(kl)(mu, logvar), wanted)
    _, tangent = torch.func.jvp(lambda mu: kl(mu, logvar), (mu,), (mu,))
    torch.testing.assert_close(tangent, mu.square().sum((1, 2, 3)))


@pytest.mark.numba
def test_second_derivatives_on_a_cpu():
    """The kernels' by their twins, and in the layout of the latents."""
    mu, logvar = leaves_of([channels_last(t) for t in operands()[:2]])
    kl = rsample_kl(mu, logvar, event_dims=3, impl="numba")[1].sum()
    (first,) = torch.autograd.grad(kl, logvar, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), logvar)
    torch.testing.assert_close(second, 0.5 * logvar.exp())


class TestDiagnostics:
    @IMPLS
    def test_kl_per_dimension_of_any_rank(self, impl, device):
        q = [*operands(device=device)[:2], *(p[0, :, :1, :1] for p in operands(device=device)[2:])]
        torch.testing.assert_close(kl_per_dimension(*q, impl=impl), textbook(q, 0))

    def test_active_units_of_any_rank(self):
        mu = normal(200, 2, 3, 3)
        mu[:, 1] *= 0.05
        wide = torch.zeros(2, 1, 1, dtype=F64)
        wide[0] = 10.0
        assert active_units(mu).tolist() == [[[True] * 3] * 3, [[False] * 3] * 3]
        assert active_units(mu, prior_logvar=wide).sum() == 0


t = torch.rand
ERRORS = {
    "too many": (t(3, 4), 3, ValueError, ["event_dims=3", "mu (3, 4)", "at least 3 dimensions"]),
    "no dimension": (t(()), 1, ValueError, ["D >= 1", "mu ()"]),
    "negative": (t(3, 4), -1, ValueError, ["event_dims must be at least 0, got -1"]),
    "bool": (t(3, 4), True, TypeError, ["event_dims must be an int, got bool"]),
    "float": (t(3, 4), 1.0, TypeError, ["event_dims must be an int, got float"]),
    "float of two": (t(3, 4), 2.0, TypeError, ["event_dims must be an int, got float"]),
    "None": (t(3, 4), None, TypeError, ["event_dims must be an int, got NoneType"]),
    "tuple": (t(3, 4), (-1,), TypeError, ["event_dims must be an int, got tuple"]),
    "empty event": (t(3, 0, 4), 2, ValueError, ["event_dims=2", "mu (3, 0, 4)", "one latent"]),
}
FUNCTIONS = {
    "gaussian_kl": lambda mu, **o: gaussian_kl(mu, mu, **o),
    "gaussian_log_prob": lambda mu, **o: gaussian_log_prob(mu, mu, mu, **o),
    "rsample_kl": lambda mu, **o: rsample_kl(mu, mu, **o),
    "rsample_log_ratio": lambda mu, **o: rsample_log_ratio(mu, mu, K, **o),
}


class TestBadInput:
    @pytest.mark.parametrize("name", FUNCTIONS)
    @pytest.mark.parametrize("case", ERRORS)
    def test_event_dims(self, case, name):
        mu, event_dims, error, parts = ERRORS[case]
        with pytest.raises(error) as caught:
            FUNCTIONS[name](mu, event_dims=event_dims)
        assert all(part in str(caught.value) for part in parts), str(caught.value)

    def test_a_mixture_is_of_one_dimension(self):
        prior = Mixture(t(2, 5), t(2, 5))
        with pytest.raises(ValueError, match="event_dims must be 1 with a Mixture as prior"):
            rsample_log_ratio(t(2, 3, 5), t(2, 3, 5), K, prior=prior, event_dims=2)
        with pytest.raises(ValueError, match="event_dims must be 1 with a Mixture as prior"):
            rsample_kl(t(2, 3, 5), t(2, 3, 5), prior=prior, event_dims=2)
        latents, options = (t(2, 3, 5), t(2, 3, 5)), {"chunk_size": K, "prior": prior}
        with pytest.raises(ValueError, match="got 2: flatten mu and logvar"):
            chunked_iwae_loss(torch.nn.Flatten(2), t(2, 15), *latents, K, **options)

    def test_a_prior_that_does_not_broadcast(self):
        with pytest.raises(ValueError, match=r"prior_mu \(3,\) does not broadcast to \(2, 3, 2, 5"):
            rsample_kl(t(SHAPE), t(SHAPE), t(3), event_dims=3)

    def test_sums_over_too_few_dimensions(self):
        x = t(2, 7)
        for event_dims in (0, 1, 2):
            _, kl = rsample_kl(t(SHAPE), t(SHAPE), event_dims=event_dims)
            with pytest.raises(ValueError, match=r"expected kl \[B\].*event_dims of rsample_kl"):
                elbo_loss(x, x, kl=kl)
            _, log_ratio = rsample_log_ratio(t(SHAPE), t(SHAPE), K, event_dims=event_dims)
            with pytest.raises(ValueError, match=r"log_ratio \[K, B\].*rsample_log_ratio"):
                iwae_loss(t(K, 2, 7), x, log_ratio)

    def test_latents_of_other_examples(self):
        with pytest.raises(ValueError, match=r"expected mu and logvar \[B, ...\]"):
            elbo_loss(t(4, 7), t(4, 7), t(SHAPE), t(SHAPE))


def test_all_of_them_say_so():
    for name in FUNCTIONS:
        assert "event_dims:" in getattr(fused_elbo, name).__doc__
