"""Laplace, Poisson and categorical likelihoods against scipy, alone and in the losses.

``test_loss.py`` and ``test_iwae_loss.py`` have what holds for any likelihood; ``oracle.OPS`` the
Laplace's accuracy, dtypes and layouts.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fused_elbo
from fused_elbo import (
    bernoulli_nll,
    categorical_nll,
    elbo_loss,
    gaussian_nll,
    laplace_nll,
    poisson_nll,
)
from fused_elbo.estimators.dispatch import choice, likelihood_calls
from helpers import launches
from helpers.accuracy import ATOL, rounding
from helpers.machine import KERNELS

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
IMPLS = pytest.mark.parametrize("impl", [KERNELS, "reference"])
# A tile of several rows; K samples; rows of several tiles.
SHAPES = [((3, 2, 5), (3, 2, 5)), ((4, 3, 7), (3, 7)), ((2, 2, 2100), (2, 2100))]


def normal(*shape, dtype=F64, device="cpu"):
    return torch.randn(shape, dtype=dtype).to(device)


def by_example(terms, x):
    """Sums over events of elementwise numpy terms of samples of x."""
    return terms.reshape(*terms.shape[: terms.ndim - x.dim() + 1], -1).sum(-1)


def assert_close(found, expected, tolerance=1e-12):
    expected = torch.as_tensor(expected)
    scale = 1 + expected.abs().max()
    assert found.shape == expected.shape
    assert (found.detach().cpu().double() - expected).abs().max() <= tolerance * scale


def n(tensor):
    return tensor.detach().cpu().numpy()


@IMPLS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestScipy:
    """Values and gradients in float64, the latter by hand."""

    @pytest.mark.parametrize("scale", ["float", "scalar", "row", "element"])
    def test_laplace(self, shape, scale, impl, device):
        recon, x = normal(*shape[0], device=device).requires_grad_(), normal(*shape[1])
        x = x.to(device).requires_grad_()
        rows = (shape[1][0], *[1] * (len(shape[1]) - 1))
        sizes = {"scalar": (), "row": rows, "element": shape[0]}
        log_scale = 0.3 if scale == "float" else normal(*sizes[scale], device=device)
        s = np.float64(0.3) if scale == "float" else n(log_scale)
        leaves = [recon, x]
        if scale != "float":
            leaves.append(log_scale.requires_grad_())
        value = laplace_nll(recon, x, log_scale, impl=impl)
        assert_close(value, by_example(-stats.laplace.logpdf(n(x), n(recon), np.exp(s)), x))
        weight = normal(*value.shape, device=device)
        found = torch.autograd.grad(value, leaves, weight)
        w = n(weight).reshape(weight.shape + (1,) * (x.dim() - 1))
        distance = n(recon) - n(x)
        drecon = torch.tensor(w * np.sign(distance) * np.exp(-s))
        assert_close(found[0], drecon)
        assert_close(found[1], -drecon.sum_to_size(x.shape))
        if scale != "float":
            dscale = torch.tensor(w * (1 - np.abs(distance) * np.exp(-s)))
            assert_close(found[2], dscale.sum_to_size(log_scale.shape))

    def test_poisson(self, shape, impl, device):
        log_rate = normal(*shape[0], device=device).requires_grad_()
        x = torch.poisson(3 * torch.rand(shape[1]) ** 3).long().to(device)
        x.view(-1)[:2] = torch.tensor([40, 1000])
        value = poisson_nll(log_rate, x, impl=impl)
        assert_close(value, by_example(-stats.poisson.logpmf(n(x), np.exp(n(log_rate))), x))
        weight = normal(*value.shape, device=device)
        (found,) = torch.autograd.grad(value, log_rate, weight)
        w = n(weight).reshape(weight.shape + (1,) * (x.dim() - 1))
        assert_close(found, w * (np.exp(n(log_rate)) - n(x)))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
    def test_categorical(self, shape, dtype, impl, device):
        """The last dimension of a shape are the classes."""
        logits = 3 * normal(*shape[0], device=device)
        logits.requires_grad_()
        target = torch.randint(min(shape[0][-1], 256), shape[1][:-1], dtype=dtype, device=device)
        value = categorical_nll(logits, target, impl=impl)
        classes = np.broadcast_to(n(target), shape[0][:-1])[..., None].astype(np.int64)
        logs = np.take_along_axis(special.log_softmax(n(logits), -1), classes, -1)[..., 0]
        assert_close(value, by_example(-logs, target))
        weight = normal(*value.shape, device=device)
        (found,) = torch.autograd.grad(value, logits, weight)
        gradient = special.softmax(n(logits), -1)
        np.put_along_axis(gradient, classes, np.take_along_axis(gradient, classes, -1) - 1, -1)
        assert_close(found, n(weight).reshape(weight.shape + (1,) * target.dim()) * gradient)


def within_twice(found, exact, eager, size):
    """The accuracy bar of helpers/accuracy.py, of the worst element."""
    error, allowed = ((t.double() - exact).abs().max().item() for t in (found, eager))
    assert error <= 2 * allowed + ATOL * rounding(found.dtype) * size.abs().max().item()


class TestFloat32:
    @pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
    def test_poisson(self, dtype, device):
        log_rate = normal(9, 100, dtype=dtype, device=device).requires_grad_()
        x = torch.poisson(4 * torch.rand(9, 100)).to(device, dtype)
        wide = log_rate.double()
        terms = wide.exp(), x.double() * wide, torch.lgamma(x.double() + 1)
        exact = (terms[0] - terms[1] + terms[2]).sum(1)
        eager = poisson_nll(log_rate.float(), x.float(), impl="reference")
        size = sum(t.abs() for t in terms).sum(1)
        found = poisson_nll(log_rate, x, impl=KERNELS)
        assert found.dtype == F32
        within_twice(found, exact, eager, size)
        (gradient,) = torch.autograd.grad(found.sum(), log_rate)
        assert gradient.dtype == dtype
        exact = wide.exp() - x.double()
        within_twice(gradient, exact, exact.to(dtype), wide.exp() + x.double())

    # Short rows, one and several registers, rows of a tile and of several, and a rest beside each.
    @pytest.mark.parametrize("classes", [1, 2, 10, 16, 64, 100, 515, 2049, 5000])
    def test_categorical(self, classes, device):
        logits = (4 * normal(5, classes, dtype=F32, device=device)).requires_grad_()
        target = torch.randint(classes, (5,), device=device)
        exact = logits.detach().double().requires_grad_()
        value = F.cross_entropy(exact, target, reduction="none")
        eager = F.cross_entropy(logits, target, reduction="none")
        found = categorical_nll(logits, target, impl=KERNELS)
        weight = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], device=device)
        within_twice(found, value, eager, logits)
        gradients = (
            torch.autograd.grad(v, t, weight.to(v.dtype))[0]
            for v, t in ((found, logits), (value, exact), (eager, logits))
        )
        within_twice(*gradients, weight)

    def test_categorical_in_bfloat16_where_it_lies(self, device):
        """Logits that are the first classes of others, and every second row."""
        whole = normal(8, 50, dtype=BF16, device=device)
        logits = whole[::2, :37].requires_grad_()
        target = torch.tensor([0, 36, 5, 5], device=device)
        found = categorical_nll(logits, target, impl=KERNELS)
        assert_close(found, F.cross_entropy(logits.double(), target, reduction="none").cpu(), 1e-6)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert gradient.dtype == BF16
        expected = logits.detach().double().softmax(1) - F.one_hot(target, 37)
        assert_close(gradient, expected.cpu(), 0.01)

    def test_a_logit_that_towers_above_the_others(self, device):
        """-log p is what the others add, 8.2e-9, where 1 + that is 1 in float32."""
        logits = torch.tensor([[20.0, 0.0, 0.0, 0.0]], device=device)
        loss = categorical_nll(logits + 1000, torch.tensor([0], device=device), impl=KERNELS)
        assert 0 <= loss.item() < 2e-7
        wrong = categorical_nll(logits + 1000, torch.tensor([1], device=device), impl=KERNELS)
        assert wrong.item() == pytest.approx(20.0, abs=1e-6)

    def test_impossible_classes(self, device):
        logits = torch.tensor([[0.0, -math.inf, 0.0]], device=device, requires_grad=True)
        value = categorical_nll(logits, torch.tensor([2], device=device), impl=KERNELS)
        assert value.item() == pytest.approx(math.log(2))
        (gradient,) = torch.autograd.grad(value, logits)
        assert_close(gradient, [[0.5, 0.0, -0.5]], 1e-6)

    @pytest.mark.parametrize("dtype", [F32, F64], ids=str)
    def test_log_factorials(self, dtype, device):
        """At rate 1 the nll is 1 + log x!: of counts and of what lies between them."""
        counts = torch.cat((torch.arange(0, 60), torch.tensor([1e3, 1e5, 1e7]))).to(dtype)
        counts = torch.cat((counts, torch.linspace(0, 9, 500, dtype=dtype)))[:, None]
        found = poisson_nll(torch.zeros_like(counts).to(device), counts.to(device), impl=KERNELS)
        expected = special.gammaln(n(counts[:, 0]).astype(np.float64) + 1)
        error = np.abs(n(found).astype(np.float64) - 1 - expected)
        eps = torch.finfo(dtype).eps
        # Beside the 1 itself; Triton has no float64 one but as a difference of up to 31.
        difference = 4 * 31 * eps if dtype == F64 and KERNELS == "triton" else 0.0
        assert (error <= 4 * eps * (1 + expected) + difference).all()


class TestNoClassAndNoCount:
    """Nobody waits for the device to look: an example that cannot be is NaN, and no other."""

    @IMPLS
    @pytest.mark.parametrize("bad", [-1, -100, 5, 2**40])
    def test_classes(self, bad, impl, device):
        logits = normal(3, 2, 5, dtype=F32, device=device).requires_grad_()
        target = torch.tensor([[0, 4], [1, bad], [3, 3]], device=device)
        value = categorical_nll(logits, target, impl=impl)
        assert value.isnan().tolist() == [False, True, False]
        (gradient,) = torch.autograd.grad(value[::2].sum(), logits)
        assert not gradient[::2].isnan().any()

    @IMPLS
    def test_counts(self, impl, device):
        log_rate = normal(2, 4, dtype=F32, device=device).requires_grad_()
        x = torch.tensor([[0, 1, 2, 3], [1, -1, 0, 0]], device=device)
        value = poisson_nll(log_rate, x, impl=impl)
        assert value.isnan().tolist() == [False, True]


# {likelihood: (recon, x, options)} of 2 samples of 3 examples with 4 events.
def operands(likelihood, device, dtype=F64):
    recon = normal(2, 3, 4, dtype=dtype, device=device)
    x, options = normal(3, 4, device=device).to(dtype), {}
    if likelihood == "laplace":
        options["log_scale"] = torch.tensor(0.3, dtype=dtype, device=device, requires_grad=True)
    if likelihood in ("poisson", "negative_binomial", "multinomial"):
        x = x.abs().round()
    if likelihood == "negative_binomial":
        for name in ("log_theta", "zero_logits"):
            options[name] = normal(4, dtype=dtype, device=device).requires_grad_()
    if likelihood == "categorical":
        recon = normal(2, 3, 4, 5, dtype=dtype, device=device)
        x = torch.randint(5, (3, 4), device=device)
    return recon.requires_grad_(), x, options


def nll_of(likelihood, recon, x, options, impl):
    return getattr(fused_elbo, f"{likelihood}_nll")(recon, x, **options, impl=impl)


LIKELIHOODS = pytest.mark.parametrize(
    "likelihood", ["laplace", "poisson", "negative_binomial", "multinomial", "categorical"]
)


@LIKELIHOODS
class TestLosses:
    """Made of the functions above, whose values are scipy's."""

    @IMPLS
    def test_elbo_loss(self, likelihood, impl, device):
        recon, x, options = operands(likelihood, device)
        kl, leaves = normal(3, device=device).requires_grad_(), [recon, *options.values()]
        nll = nll_of(likelihood, recon, x, options, "reference").mean(0)
        for reduction in ("mean", "sum", "none"):
            expected = nll + 0.5 * kl
            expected = expected if reduction == "none" else getattr(expected, reduction)()
            loss = elbo_loss(
                recon, x, kl=kl, likelihood=likelihood, beta=0.5, reduction=reduction, impl=impl,
                **options,
            )  # fmt: skip
            torch.testing.assert_close(loss, expected)
            pairs = [
                torch.autograd.grad(3 * value.sum(), [*leaves, kl], retain_graph=True)
                for value in (loss, expected)
            ]
            torch.testing.assert_close(*pairs)
            if reduction == "mean":  # again, when forward's gradient is handed over
                again = torch.autograd.grad(3 * loss, [*leaves, kl])
                torch.testing.assert_close(again, pairs[1])

    @IMPLS
    def test_importance_weighted(self, likelihood, impl, device):
        recon, x, options = operands(likelihood, device)
        log_ratio = normal(2, 3, device=device)
        log_weights = log_ratio - nll_of(likelihood, recon, x, options, "reference")
        expected = (math.log(2) - torch.logsumexp(log_weights, 0)).mean()
        loss = fused_elbo.iwae_loss(
            recon, x, log_ratio, likelihood=likelihood, impl=impl, **options
        )
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, recon) for v in (loss, expected)))

    def test_in_chunks_and_in_terms(self, likelihood, device):
        """Functions that hand their arguments on hand these on."""
        recon, x, options = operands(likelihood, device)
        q = normal(3, 2, device=device)
        parameters = dict(options)
        options |= {"likelihood": likelihood, "impl": KERNELS}
        decoder = lambda z: recon[:1].detach().expand(len(z), *recon.shape[1:])  # noqa: E731
        torch.manual_seed(1)
        parts = fused_elbo.chunked_iwae_loss(
            decoder, x, q, q, 4, chunk_size=2, return_parts=True, **options
        )
        nll = nll_of(likelihood, recon[0], x, parameters, KERNELS)
        torch.manual_seed(1)
        _, log_ratio = fused_elbo.rsample_log_ratio(q, q, 4, impl=KERNELS)
        torch.testing.assert_close(parts.log_weights, log_ratio - nll)
        terms = fused_elbo.elbo_tc_loss(
            recon[0], x, q, q, q, 10, return_parts=True, reduction="none", **options
        )
        torch.testing.assert_close(terms.nll, nll)
        # An output of a network, and so no attribute of a module.
        called = {k: options.pop(k) for k in ("zero_logits",) if k in options}
        module = fused_elbo.ELBOLoss(**options)
        buffers = [name for name in parameters if name not in called]
        assert [name for name, _ in module.named_buffers()] == buffers
        loss = module(recon[0], x, kl=nll.detach(), **called)
        torch.testing.assert_close(loss, (nll + nll.detach()).mean())

    def test_gradcheck(self, likelihood, device):
        recon, x, options = operands(likelihood, device)
        recon, x = recon.detach()[:, :1, :2].clone().requires_grad_(), x[:1, :2]
        options = {
            k: v.detach()[..., :2].requires_grad_() if v.dim() else v for k, v in options.items()
        }
        leaves = [recon, *options.values()]

        def function(recon, *values):
            return nll_of(likelihood, recon, x, dict(zip(options, values, strict=True)), KERNELS)

        assert torch.autograd.gradcheck(function, leaves)
        if KERNELS == "numba":  # by the op's twin
            assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize(
    ("likelihood", "impl"),
    [
        ("laplace", KERNELS),
        ("categorical", KERNELS),
        ("categorical", "reference"),
        ("negative_binomial", KERNELS),
        ("negative_binomial", "reference"),
        ("multinomial", KERNELS),
    ],
)
def test_compiled(likelihood, impl, device):
    """In one graph, and on other batches."""
    torch._dynamo.reset()

    def step(recon, x, kl, *values):
        options = dict(zip(names, values, strict=True))
        return elbo_loss(recon, x, kl=kl, likelihood=likelihood, impl=impl, **options)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    recon, x, options = operands(likelihood, device)
    names = list(options)
    for batch in (3, 2):
        given = recon[:, :batch], x[:batch], normal(batch, device=device), *options.values()
        results = [
            (value, *torch.autograd.grad(value, recon))
            for value in (f(*given) for f in (compiled, step))
        ]
        torch.testing.assert_close(*results)


@pytest.mark.numba
def test_what_is_left_to_torch(device, monkeypatch):
    """Small ones, and on CPUs alone; many classes, which torch's softmax takes at once."""
    one = torch.tensor(0.5)

    def taken(likelihood, *shape, learned=False):
        recon = torch.empty(shape)
        return not choice.left_to_torch("auto", recon, likelihood, learned)

    assert not taken("laplace", 2**8, 2**7)
    assert taken("laplace", 2**8, 2**8)
    assert not taken("laplace", 2**7, 2**7, learned=True)
    assert taken("laplace", 2**8, 2**7, learned=True)
    assert taken("poisson", 1, 1)
    assert taken("categorical", 3, 10)
    assert not taken("categorical", 64, 64)
    assert taken("categorical", 2**10, 2**8)
    in_loss = {"likelihood": "categorical", "in_loss": True}
    assert choice.left_to_torch("auto", torch.empty(64, 64), **in_loss)
    assert not choice.left_to_torch("auto", torch.empty(64, 10), **in_loss)
    assert not choice.left_to_torch("auto", torch.empty(2**8, 2**8), **in_loss)
    ran = []
    monkeypatch.setattr(likelihood_calls.reference, "laplace_nll", lambda *a: ran.append(a) or one)
    laplace_nll(torch.zeros(3, 4), torch.zeros(3, 4), one)
    laplace_nll(torch.zeros(3, 4), torch.zeros(3, 4), one, impl="numba")
    assert len(ran) == 1


@pytest.mark.numba
@pytest.mark.parametrize(
    ("likelihood", "below"), [("bernoulli", 2**13), ("gaussian", 2**16), ("laplace", 2**15)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_small_losses_are_left_to_torch(likelihood, below, reduction, monkeypatch):
    """Not under another impl than "auto"; and what torch computes is what the kernel does."""
    ran = launches.watch(monkeypatch)

    def loss_and_gradients(size, impl):
        generator = torch.Generator().manual_seed(size)
        recon, x = torch.rand(2, size // 16, 16, generator=generator)
        kl = torch.rand(size // 16, generator=generator)
        leaves = recon.requires_grad_(), kl.requires_grad_()
        options = {"likelihood": likelihood, "beta": 0.5, "reduction": reduction, "impl": impl}
        parts = elbo_loss(recon, x, kl=kl, return_parts=True, **options)
        took = list(ran)
        gradients = torch.autograd.grad(parts.loss, leaves)
        ran.clear()
        return took, (*parts, *gradients)

    for size, impl, op in [
        (below - 16, "auto", []),
        (below - 16, "numba", ["elbo_loss"]),
        (below, "auto", ["elbo_loss"]),
    ]:
        took, found = loss_and_gradients(size, impl)
        assert took == op
        _, expected = loss_and_gradients(size, "numba")
        torch.testing.assert_close(found, expected)


@pytest.mark.numba
def test_small_losses_with_a_learned_width_have_the_kernel(monkeypatch):
    ran = launches.watch(monkeypatch)
    recon, x = torch.rand(2, 3, 4)
    elbo_loss(recon, x, kl=x[:, 0], likelihood="gaussian", recon_logvar=torch.zeros(()))
    assert ran == ["elbo_loss"]


NODES = {
    "bernoulli": (bernoulli_nll, ["SumBackward1", "BinaryCrossEntropyWithLogitsBackward0"]),
    "gaussian": (gaussian_nll, ["RsubBackward1", "SumBackward1", "MseLossBackward0"]),
    "laplace": (laplace_nll, ["RsubBackward1", "SumBackward1", "AbsBackward0", "SubBackward0"]),
    "categorical": (categorical_nll, ["NllLossBackward0", "LogSoftmaxBackward0"]),
}


@pytest.mark.parametrize("likelihood", NODES)
def test_what_is_left_to_torch_takes_few_operations(likelihood):
    """A call with few examples spends its time on operations, so torch must see few of them."""
    function, nodes = NODES[likelihood]
    recon = normal(3, 4, dtype=F32).requires_grad_()
    x = torch.tensor([0, 3, 1]) if likelihood == "categorical" else torch.ones(3, 4)
    node, found = function(recon, x, impl="reference").grad_fn, []
    while node is not None and node.name() != "torch::autograd::AccumulateGrad":
        found.append(node.name())
        node = node.next_functions[0][0]
    assert found == nodes


class TestLookAtClasses:
    """On a CPU, where nobody watches; elsewhere those outside [0, C) are left out and marked."""

    logits = torch.zeros(2, 5)

    @pytest.mark.parametrize("classes", [[0, 4], [-1, 0], [0, 5], [2**40, 0], [0, -(2**63)]])
    def test_numbers(self, classes):
        known = all(0 <= c < 5 for c in classes)
        assert choice.all_known(torch.tensor(classes), self.logits) == known

    def test_none(self):
        assert not choice.all_known(torch.zeros(0, dtype=torch.int64), self.logits[:0])
        assert categorical_nll(self.logits[:0], torch.zeros(0, dtype=torch.int64)).shape == (0,)

    def test_not_where_to_look_is_to_wait(self):
        target = torch.zeros(2, dtype=torch.int64)
        assert choice.all_known(target, self.logits)
        assert not choice.all_known(target.to("meta"), self.logits.to("meta"))
        with FakeTensorMode() as mode:
            assert not choice.all_known(*map(mode.from_tensor, (target, self.logits)))

    def test_not_in_a_graph_for_other_classes(self):
        """Traced at known classes, unknown ones are NaN all the same."""

        def nll(target):
            return categorical_nll(self.logits, target)

        traced = make_fx(nll)(torch.tensor([0, 4]))
        assert traced(torch.tensor([0, 5])).isnan().tolist() == [False, True]
        batched = torch.func.vmap(nll)(torch.tensor([[0, 4], [0, 5]]))
        assert batched.isnan().tolist() == [[False, False], [False, True]]
