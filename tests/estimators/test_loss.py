"""elbo_loss and ELBOLoss: values, parts and gradients in every combination of options."""

import copy
import io
import itertools
import math
import pickle

import pytest
import torch

import fused_elbo
from fused_elbo import ELBOLoss, elbo_loss
from helpers.accuracy import ATOL, LAYOUTS, lay, rounding
from helpers.machine import KERNELS
from helpers.oracle import (
    bernoulli_nll_parts,
    eager_bernoulli_nll,
    eager_kl,
    gaussian_nll_parts,
    kl_parts,
)

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
EVENT, LATENT = (3, 2), (4,)
BETA = 0.625  # exact in every dtype


def textbook(arguments, likelihood, beta, reduction, kl_terms, bernoulli_terms):
    """(loss, nll, kl) by the formula, in the dtype of the arguments."""
    a = dict(arguments)
    recon, x = a["recon"], a["x"]
    if likelihood == "bernoulli":
        terms = bernoulli_terms(recon, x)
    else:
        logvar = torch.as_tensor(a.get("recon_logvar", 0.0), dtype=recon.dtype, device=x.device)
        terms = sum(gaussian_nll_parts(x, recon, logvar.expand(recon.shape)))
    nll = terms.flatten(1).sum(1)
    kl = a.get("kl")
    if kl is None:
        latents = [a[n] for n in ("mu", "logvar")]
        latents += [a[n].expand(latents[0].shape) for n in ("prior_mu", "prior_logvar") if n in a]
        kl = kl_terms(*latents).flatten(1).sum(1)
    loss = nll + beta * kl
    if reduction == "none":
        return loss, nll, kl
    return tuple(getattr(t, reduction)() for t in (loss, nll, kl))


def exact(arguments, likelihood, beta, reduction):
    return textbook(
        arguments,
        likelihood,
        beta,
        reduction,
        lambda *a: sum(kl_parts(*a)),
        lambda *a: sum(bernoulli_nll_parts(*a)),
    )


def eager(arguments, likelihood, beta, reduction):
    return textbook(arguments, likelihood, beta, reduction, eager_kl, eager_bernoulli_nll)


def make(names, batch=5, event=EVENT, latent=LATENT, seed=0):
    """Float64 values for the named arguments, by name."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, dtype=F64, generator=generator)  # noqa: E731
    values = {
        "recon": normal(batch, *event),
        "x": torch.rand((batch, *event), dtype=F64, generator=generator),
        "recon_logvar": 0.7 * normal(*event),
        "mu": normal(batch, *latent),
        "logvar": 0.7 * normal(batch, *latent),
        "prior_mu": normal(*latent),
        "prior_logvar": 0.7 * normal(*latent),
        "kl": normal(batch).abs() * latent[0],
    }
    return {name: values[name] for name in names}


LIKELIHOODS = {"bernoulli": ("recon", "x"), "gaussian": ("recon", "x", "recon_logvar")}
SOURCES = {
    "kl": ("kl",),
    "latent": ("mu", "logvar"),
    "prior": ("mu", "logvar", "prior_mu", "prior_logvar"),
}


def leaves_of(values, dtype, device):
    return {n: v.to(device, dtype).requires_grad_() for n, v in values.items()}


def assert_bar(actual, oracle, reference, size, what):
    """The bar of bar.py; ``size`` is the magnitude of what was added up."""
    assert actual.shape == oracle.shape, what
    error = (actual.double() - oracle).abs().max().item()
    allowed = 2 * (reference.double() - oracle).abs().nan_to_num(0.0, 0.0).max().item()
    bar = allowed + ATOL * rounding(actual.dtype) * size
    assert error <= bar, f"{what}: error {error:.3g} above the bar {bar:.3g}"


def compare(leaves, outputs, weights, **options):
    """Outputs, and gradients of the outputs by ``weights``, against float64 by the bar."""
    chosen = [i for i, w in enumerate(weights) if w is not None]
    upstream = [weights[i] for i in chosen]

    def gradients(outputs, leaves):
        return torch.autograd.grad(
            [outputs[i] for i in chosen],
            leaves.values(),
            [w.to(outputs[i].dtype) for i, w in zip(chosen, upstream, strict=True)],
            allow_unused=True,
            retain_graph=True,
        )

    wide = {n: t.detach().double().requires_grad_() for n, t in leaves.items()}
    own = {n: t.detach().clone().requires_grad_() for n, t in leaves.items()}
    truth, plain = exact(wide, **options), eager(own, **options)
    # The constant parts of a Gaussian's terms, and sums that cancel, are of this size.
    batch = leaves["recon"].shape[0]
    size = truth[1].abs().max() + truth[2].abs().max() + leaves["recon"].numel() / batch
    size = size.item() * (1 if options["reduction"] != "sum" else batch)
    for name, a, t, p in zip(("loss", "nll", "kl"), outputs, truth, plain, strict=True):
        assert_bar(a.detach(), t.detach(), p.detach(), size, name)
    results = [gradients(o, ls) for o, ls in ((outputs, leaves), (truth, wide), (plain, own))]
    for name, a, t, p in zip(leaves, *results, strict=True):
        a, t, p = (torch.zeros_like(leaves[name]) if g is None else g for g in (a, t, p))
        # The gradient of a broadcast argument sums one term an example.
        terms = 1 if leaves[name].shape[:1] == (batch,) else batch
        largest = max(w.abs().max().item() for w in upstream)
        assert a.dtype == leaves[name].dtype
        assert_bar(a, t, p, terms * max(t.abs().max().item(), largest / batch), name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
def test_values_parts_and_gradients(reduction, likelihood, source, dtype, device):
    """Every option; the loss alone, each part alone, and all three together."""
    options = {"likelihood": likelihood, "beta": BETA, "reduction": reduction}
    leaves = leaves_of(make(LIKELIHOODS[likelihood] + SOURCES[source]), dtype, device)
    generator = torch.Generator().manual_seed(1)
    size = (5,) if reduction == "none" else ()
    weights = [2 * torch.rand(size, generator=generator).to(device) - 3 for _ in range(3)]
    for wanted in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)):
        parts = elbo_loss(**leaves, **options, return_parts=True, impl=KERNELS)
        assert type(parts) is fused_elbo.ELBOParts
        chosen = [w if on else None for w, on in zip(weights, wanted, strict=True)]
        compare(leaves, parts, chosen, **options)
    loss = elbo_loss(**leaves, **options, impl=KERNELS)
    assert isinstance(loss, torch.Tensor)
    assert torch.equal(loss, parts.loss)
    assert loss.dtype == (F64 if dtype == F64 else F32)


# Shapes and layouts matter to the kernels underneath, tested one by one in test_numerics; here
# for what the loss adds: partial sums over several tiles of rows and of columns.
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("batch", "event"),
    [(1, (1,)), (2, (1025,)), (130, (7,)), (3, (3, 8, 8)), (2, (4097,))],
    ids=str,
)
def test_many_tiles(likelihood, batch, event, device):
    options = {"likelihood": likelihood, "beta": BETA, "reduction": "mean"}
    values = make(LIKELIHOODS[likelihood] + ("mu", "logvar"), batch, event)
    leaves = leaves_of(values, F32, device)
    parts = elbo_loss(**leaves, **options, return_parts=True, impl=KERNELS)
    compare(leaves, parts, [torch.tensor(-1.5), None, None], **options)


def test_kl_of_more_rows_than_one_block(device):
    """The last stage sums 4096 numbers a step."""
    values = make(("recon", "x", "kl"), 9000, (1,))
    leaves = leaves_of(values, F32, device)
    options = {"likelihood": "bernoulli", "beta": 2.0, "reduction": "mean"}
    parts = elbo_loss(**leaves, **options, return_parts=True, impl=KERNELS)
    compare(leaves, parts, [torch.tensor(1.0), None, torch.tensor(0.5)], **options)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_layouts(layout, likelihood, dtype, device):
    values = make(LIKELIHOODS[likelihood] + ("kl",), 6, (4, 8))
    leaves, views = {}, {}
    for name, value in values.items():
        leaf, views[name] = lay(value.to(device, dtype), layout)
        leaves[name] = leaf.requires_grad_()
    viewed = {n: views[n](leaf) for n, leaf in leaves.items()}
    loss = elbo_loss(**viewed, likelihood=likelihood, beta=BETA, impl=KERNELS)
    dense = {n: v.detach().contiguous().requires_grad_() for n, v in viewed.items()}
    expected = elbo_loss(**dense, likelihood=likelihood, beta=BETA, impl=KERNELS)
    assert torch.equal(loss, expected)
    gradients = torch.autograd.grad(loss, leaves.values(), torch.tensor(1.75, device=device))
    plain = torch.autograd.grad(expected, dense.values(), torch.tensor(1.75, device=device))
    for n, actual, g in zip(leaves, gradients, plain, strict=True):
        again = {n: leaf.detach().requires_grad_() for n, leaf in leaves.items()}
        (lifted,) = torch.autograd.grad(views[n](again[n]), again[n], g)
        assert torch.equal(actual, lifted), n


RECON_LOGVARS = {
    "float": lambda: -0.75,
    "zero": lambda: 0.0,
    "scalar": lambda: torch.tensor(-0.75, dtype=F64),
    "one": lambda: torch.tensor([0.5], dtype=F64),
    "row": lambda: torch.linspace(-1, 1, 5, dtype=F64).view(5, 1, 1),
    "channel": lambda: torch.linspace(-1, 1, 3, dtype=F64).view(3, 1),
    "last": lambda: torch.linspace(-1, 1, 2, dtype=F64),
    "element": lambda: torch.linspace(-1, 1, 30, dtype=F64).view(5, 3, 2),
}


@pytest.mark.parametrize("form", RECON_LOGVARS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_forms_of_recon_logvar(form, reduction, dtype, device):
    options = {"likelihood": "gaussian", "beta": 1.0, "reduction": reduction}
    leaves = leaves_of(make(("recon", "x", "kl")), dtype, device)
    logvar = RECON_LOGVARS[form]()
    if isinstance(logvar, float):
        parts = elbo_loss(**leaves, recon_logvar=logvar, **options, return_parts=True, impl=KERNELS)
        learned = leaves | {"recon_logvar": torch.tensor(logvar, dtype=dtype, device=device)}
        tensor = elbo_loss(**learned, **options, impl=KERNELS)
        torch.testing.assert_close(parts.loss, tensor, rtol=1e-6, atol=0)
    else:
        leaves["recon_logvar"] = logvar.to(device, dtype).requires_grad_()
        parts = elbo_loss(**leaves, **options, return_parts=True, impl=KERNELS)
        weight = torch.full((5,) if reduction == "none" else (), 0.75, device=device)
        compare(leaves, parts, [weight, None, None], **options)


SUBSETS = [
    (names, tuple(itertools.compress(names, bits)))
    for likelihood, source in (("bernoulli", "kl"), ("gaussian", "kl"), ("gaussian", "prior"))
    for names in [LIKELIHOODS[likelihood] + SOURCES[source]]
    for bits in itertools.product((0, 1), repeat=len(names))
]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_subset_of_gradients(reduction, device):
    """Each subset's gradients are those of the whole set, bit for bit; the rest get none."""
    upstream = torch.linspace(0.5, 2, 5).to(device) if reduction == "none" else torch.tensor(1.5)
    whole = {}
    for names, wanted in reversed(SUBSETS):  # the whole set comes before its subsets
        likelihood = "gaussian" if "recon_logvar" in names else "bernoulli"
        leaves = leaves_of(make(names), F32, device)
        for name in set(names) - set(wanted):
            leaves[name].requires_grad_(False)
        loss = elbo_loss(**leaves, likelihood=likelihood, reduction=reduction, impl=KERNELS)
        assert loss.requires_grad == bool(wanted)
        if wanted:
            loss.backward(upstream.to(device))
        if wanted == names:
            whole[names] = {n: leaf.grad for n, leaf in leaves.items()}
        for name, leaf in leaves.items():
            if name in wanted:
                assert torch.equal(leaf.grad, whole[names][name]), (wanted, name)
            else:
                assert leaf.grad is None, (wanted, name)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
class TestBackwardTwice:
    """The gradients computed in forward are handed over once; a retained graph has more."""

    def graph(self, likelihood, dtype, device):
        leaves = leaves_of(make(LIKELIHOODS[likelihood] + ("kl",)), dtype, device)
        parts = elbo_loss(**leaves, likelihood=likelihood, return_parts=True, impl=KERNELS)
        return leaves, parts

    @pytest.mark.parametrize("factor", [1.0, 3.0])
    def test_second_backward_is_the_first(self, likelihood, dtype, factor, device):
        leaves, parts = self.graph(likelihood, dtype, device)
        weight = torch.tensor(factor, dtype=parts.loss.dtype, device=device)
        first = torch.autograd.grad(parts.loss, leaves.values(), weight, retain_graph=True)
        kept = [g.clone() for g in first]
        for _ in range(2):
            second = torch.autograd.grad(parts.loss, leaves.values(), weight, retain_graph=True)
            for a, b in zip(kept, second, strict=True):
                # Rounded once where the first was rounded before and after the factor.
                size = b.abs().max().item()
                torch.testing.assert_close(a, b, rtol=0, atol=2 * rounding(dtype) * size)
        for a, b in zip(kept, first, strict=True):
            assert torch.equal(a, b)

    def test_another_factor_the_second_time(self, likelihood, dtype, device):
        leaves, parts = self.graph(likelihood, dtype, device)
        options = {"likelihood": likelihood, "beta": 1.0, "reduction": "mean"}
        for factor in (-2.0, 1.0, 0.5):
            compare(leaves, parts, [torch.tensor(factor), None, None], **options)

    def test_parts_one_after_the_other(self, likelihood, dtype, device):
        """A first backward through kl alone must not use the handed-over gradients up."""
        options = {"likelihood": likelihood, "beta": 1.0, "reduction": "mean"}
        for order in itertools.permutations(range(3)):
            leaves, parts = self.graph(likelihood, dtype, device)
            for part in order:
                weights = [None] * 3
                weights[part] = torch.tensor(1.25)
                compare(leaves, parts, weights, **options)

    def test_gradients_accumulate(self, likelihood, dtype, device):
        leaves, parts = self.graph(likelihood, dtype, device)
        parts.loss.backward(retain_graph=True)
        once = {n: leaf.grad.clone() for n, leaf in leaves.items()}
        parts.loss.backward()
        for n, leaf in leaves.items():
            size = once[n].abs().max().item()
            torch.testing.assert_close(
                leaf.grad, 2 * once[n], rtol=0, atol=4 * rounding(dtype) * size
            )

    def test_some_of_the_gradients_at_a_time(self, likelihood, dtype, device):
        leaves, parts = self.graph(likelihood, dtype, device)
        whole = torch.autograd.grad(parts.loss, leaves.values(), retain_graph=True)
        leaves, parts = self.graph(likelihood, dtype, device)
        for leaf, expected in zip(leaves.values(), whole, strict=True):
            (alone,) = torch.autograd.grad(parts.loss, leaf, retain_graph=True)
            size = expected.abs().max().item()
            torch.testing.assert_close(alone, expected, rtol=0, atol=2 * rounding(dtype) * size)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_reduction_is_over_examples_only(likelihood, device):
    """The mean is that of the per-example values, each a sum over its events and latents."""
    values = make(LIKELIHOODS[likelihood] + ("mu", "logvar"), 7, (3, 4))
    tensors = {n: v.to(device, F32) for n, v in values.items()}
    options = {"likelihood": likelihood, "return_parts": True, "impl": KERNELS}
    each = elbo_loss(**tensors, reduction="none", **options)
    mean = elbo_loss(**tensors, reduction="mean", **options)
    total = elbo_loss(**tensors, reduction="sum", **options)
    for a, m, t in zip(each, mean, total, strict=True):
        assert a.shape == (7,)
        torch.testing.assert_close(m, a.mean(), rtol=1e-6, atol=0)
        torch.testing.assert_close(t, a.sum(), rtol=1e-6, atol=0)
    if likelihood == "bernoulli":
        nll = fused_elbo.bernoulli_nll(tensors["recon"], tensors["x"], impl=KERNELS)
    else:
        args = (tensors[n] for n in ("recon", "x", "recon_logvar"))
        nll = fused_elbo.gaussian_nll(*args, impl=KERNELS)
    assert torch.equal(each.nll, nll)
    kl = fused_elbo.gaussian_kl(tensors["mu"], tensors["logvar"], impl=KERNELS)
    assert torch.equal(each.kl, kl)
    torch.testing.assert_close(each.loss, nll + kl, rtol=1e-6, atol=0)


def test_no_unstated_beta(device):
    """Repeating every pixel doubles the likelihood and leaves the KL as it is."""
    values = make(("recon", "x", "mu", "logvar"), 4, (6,))
    tensors = {n: v.to(device, F32) for n, v in values.items()}
    once = elbo_loss(**tensors, return_parts=True, impl=KERNELS)
    doubled = tensors | {n: torch.cat((tensors[n],) * 2, 1) for n in ("recon", "x")}
    twice = elbo_loss(**doubled, return_parts=True, impl=KERNELS)
    torch.testing.assert_close(twice.nll, 2 * once.nll)
    torch.testing.assert_close(twice.kl, once.kl)
    torch.testing.assert_close(twice.loss, 2 * once.nll + once.kl)


def test_rsample_kl_hands_its_kl_over(device):
    values = make(("recon", "x", "mu", "logvar"))
    leaves = leaves_of(values, F32, device)
    recon, x, mu, logvar = leaves.values()
    _, kl = fused_elbo.rsample_kl(mu, logvar, impl=KERNELS)
    given = elbo_loss(recon, x, kl=kl, impl=KERNELS)
    computed = elbo_loss(recon, x, mu, logvar, impl=KERNELS)
    torch.testing.assert_close(given, computed, rtol=1e-6, atol=0)
    for a, b in zip(
        torch.autograd.grad(given, (recon, mu, logvar)),
        torch.autograd.grad(computed, (recon, mu, logvar)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_float16_survives_a_small_share_and_a_large_loss_scale(likelihood, device):
    """1 / B of a gradient is below float16's range before the loss scale brings it back."""
    batch, scale = 256, 2.0**16
    values = make(LIKELIHOODS[likelihood] + ("kl",), batch, (8,))
    values["recon"] = values["recon"] * 2.0**-9 + (0 if likelihood == "bernoulli" else values["x"])
    if likelihood == "gaussian":
        values["recon_logvar"].zero_()
    leaves = leaves_of(values, F16, device)
    loss = elbo_loss(**leaves, likelihood=likelihood, impl=KERNELS)
    weight = torch.tensor(scale, device=device)
    actual = torch.autograd.grad(loss, leaves["recon"], weight)[0]
    wide = {n: t.detach().double().requires_grad_() for n, t in leaves.items()}
    truth = exact(wide, likelihood, 1.0, "mean")[0]
    expected = torch.autograd.grad(truth, wide["recon"], weight.double())[0]
    torch.testing.assert_close(actual.double(), expected, rtol=rounding(F16), atol=2.0**-24)


@pytest.mark.parametrize("impl", [KERNELS, "reference"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_empty_batch(likelihood, impl, device):
    """Empty per-example values, a sum of zero, a mean that is NaN, gradients of the right shape."""
    names = LIKELIHOODS[likelihood] + ("mu", "logvar")
    for reduction in ("none", "sum", "mean"):
        leaves = leaves_of(make(names, 0), F32, device)
        options = {"likelihood": likelihood, "reduction": reduction, "impl": impl}
        parts = elbo_loss(**leaves, **options, return_parts=True)
        for part in parts:
            assert part.shape == ((0,) if reduction == "none" else ())
            if reduction == "sum":
                assert part.item() == 0
            if reduction == "mean":
                assert math.isnan(part.item())
        gradients = torch.autograd.grad(parts.loss.sum(), leaves.values())
        for leaf, gradient in zip(leaves.values(), gradients, strict=True):
            assert gradient.shape == leaf.shape


def test_parts_without_gradients(device):
    tensors = {n: v.to(device, F32) for n, v in make(("recon", "x", "kl")).items()}
    tensors["recon"].requires_grad_()
    with torch.no_grad():
        assert not elbo_loss(**tensors, impl=KERNELS).requires_grad
    parts = elbo_loss(**tensors, return_parts=True, impl=KERNELS)
    (gradient,) = torch.autograd.grad(parts.nll, tensors["recon"])
    torch.testing.assert_close(
        gradient, (torch.sigmoid(tensors["recon"]) - tensors["x"]).detach() / 5
    )


class TestModule:
    """ELBOLoss: the function with its options fixed."""

    @pytest.mark.parametrize("impl", [KERNELS, "reference"])
    def test_is_the_function(self, impl, device):
        tensors = {n: v.to(device, F32) for n, v in make(("recon", "x", *SOURCES["prior"])).items()}
        options = {
            "likelihood": "gaussian",
            "recon_logvar": -0.5,
            "beta": 0.3,
            "reduction": "sum",
            "impl": impl,
        }
        module = ELBOLoss(**options, return_parts=True)
        expected = elbo_loss(**tensors, **options, return_parts=True)
        for a, b in zip(module(**tensors), expected, strict=True):
            assert torch.equal(a, b)
        given = ELBOLoss(impl=impl)(tensors["recon"], tensors["x"], kl=torch.ones(5, device=device))
        plain = elbo_loss(
            tensors["recon"], tensors["x"], kl=torch.ones(5, device=device), impl=impl
        )
        assert torch.equal(given, plain)

    def learned(self, device, **options):
        parameter = torch.nn.Parameter(torch.tensor(-0.5))
        options = {"likelihood": "gaussian", "impl": KERNELS} | options
        return ELBOLoss(recon_logvar=parameter, **options).to(device)

    def test_copies(self, device):
        """A deep copy and a pickle have the options and parameters, and share nothing."""
        tensors = {n: v.to(device, F32) for n, v in make(("recon", "x", "kl")).items()}
        module = self.learned(device, beta=0.7, reduction="sum")
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        copies = [
            copy.deepcopy(module),
            pickle.loads(pickle.dumps(module)),
            torch.load(stream, weights_only=False),
        ]
        expected = module(**tensors)
        with torch.no_grad():
            module.recon_logvar.add_(1.0)
        for copied in copies:
            assert torch.equal(copied(**tensors), expected)
            assert repr(copied) == repr(module)
            assert [n for n, _ in copied.named_parameters()] == ["recon_logvar"]

    @pytest.mark.parametrize("dtype", [F16, BF16, F64], ids=str)
    def test_moves(self, dtype, device):
        module = self.learned(device).to(dtype)
        tensors = {n: v.to(device, dtype) for n, v in make(("recon", "x", "kl")).items()}
        assert module.recon_logvar.dtype == dtype
        loss = module(**tensors)
        loss.backward()
        assert loss.dtype == (F64 if dtype == F64 else F32)
        assert module.recon_logvar.grad.dtype == dtype

    def test_state_dict_round_trip(self, device):
        module = self.learned(device)
        with torch.no_grad():
            module.recon_logvar.fill_(0.25)
        other = self.learned(device)
        other.load_state_dict(module.state_dict())
        assert other.recon_logvar.item() == 0.25
        assert ELBOLoss().state_dict() == {}
        buffered = ELBOLoss(likelihood="gaussian", recon_logvar=torch.zeros(3))
        assert list(buffered.state_dict()) == ["recon_logvar"]
        assert list(buffered.parameters()) == []

    def test_learned_sigma_finds_the_residuals_variance(self, device):
        """Its optimum is log mean squared residual: a closed form for gradient descent to meet."""
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(16, 6, generator=generator).to(device) * 0.3
        recon, kl = torch.zeros_like(x), torch.zeros(16, device=device)
        module = self.learned(device)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.2)
        for _ in range(40):
            optimiser.zero_grad()
            module(recon, x, kl=kl).backward()
            optimiser.step()
        assert module.recon_logvar.item() == pytest.approx(x.square().mean().log().item(), abs=1e-3)

    def test_beta_follows_a_schedule(self, device):
        tensors = {n: v.to(device, F32) for n, v in make(("recon", "x", "kl")).items()}
        module = ELBOLoss(return_parts=True, impl=KERNELS)
        for beta in (0.0, 0.5, 1.0):
            module.beta = beta
            loss, nll, kl = module(**tensors)
            torch.testing.assert_close(loss, nll + beta * kl)
        assert "beta=1.0" in repr(module)
