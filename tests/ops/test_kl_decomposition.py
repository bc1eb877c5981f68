"""The KL in three terms as one op: its numbers, its gradients, and that threads change neither."""

import math

import pytest
import torch
from torch.distributions import Normal

from fused_elbo.estimators.reference import reference
from fused_elbo.kernels import ops
from helpers.accuracy import ATOL, LOW, accumulation, lay, rounding
from helpers.machine import INTERPRET
from helpers.oracle import upstream
from helpers.samples import normal

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
# (rows, latents, components or None for the rows' own, dataset_size). Numba's blocks are of 32
# rows, backward of up to 128, and its groups of 8 components and 8 latents.
SIZES = [
    (2, 1, None, 2),
    (3, 2, None, 1000),
    (33, 3, None, 40),
    (70, 9, None, 60_000),
    (7, 5, None, None),
    (1, 2, 1, None),
    (34, 3, 41, None),
]


def problem(rows, cols, components, device, *, std=1.0, offset=0.0, dtype=F32):
    """(z, mu, logvar), and two of a data set or None: rows are samples of q."""
    mu, logvar = offset + normal(rows, cols, seed=1), 0.3 * normal(rows, cols, seed=2)
    logvar = logvar + 2 * math.log(std)
    z = mu + torch.exp(0.5 * logvar) * normal(rows, cols, seed=3)
    found = [z, mu, logvar]
    if components is not None:
        scale = std, 0.3
        found += [s * normal(components, cols, seed=4 + n) for n, s in enumerate(scale)]
        found[3], found[4] = found[3] + offset, found[4] + 2 * math.log(std)
    return [t.to(device, dtype) for t in found] + [None] * (5 - len(found))


def log_weights(rows, components, size):
    """Written out from the paper."""
    if size is None:
        return torch.full((rows, components), -math.log(components), dtype=F64)
    others = rows - 1
    weights = torch.full((rows, rows), 1 / others, dtype=F64)
    for i in range(rows):
        weights[i, i] = 1 / size
        weights[i, (i + 1) % rows] = (size - others) / (size * others)
    return weights.log()


def textbook(z, mu, logvar, all_mu, all_logvar, size):
    """The terms by torch.distributions, in the dtype of the arguments."""
    q = Normal(mu, (0.5 * logvar).exp(), validate_args=False)
    components = q
    if all_mu is not None:
        components = Normal(all_mu, (0.5 * all_logvar).exp(), validate_args=False)
    pairs = components.log_prob(z.unsqueeze(1))
    weights = log_weights(*pairs.shape[:2], size).to(pairs)
    joint = torch.logsumexp(pairs.sum(-1) + weights, 1)
    marginals = torch.logsumexp(pairs + weights[..., None], 1).sum(-1)
    prior = Normal(torch.zeros_like(z[0]), 1.0, validate_args=False).log_prob(z).sum(-1)
    return q.log_prob(z).sum(-1) - joint, joint - marginals, marginals - prior


def with_gradients(function, tensors, weights, views=(None,) * 5):
    """Terms, then the gradients of the tensors that there are."""
    leaves = [t if t is None else t.detach().clone().requires_grad_() for t in tensors]
    given = [t if v is None or t is None else v(t) for t, v in zip(leaves, views, strict=True)]
    terms = function(*given)
    weights = [w.to(terms[0]) for w in weights]
    wanted = [t for t in leaves if t is not None]
    return [*(t.detach() for t in terms), *torch.autograd.grad(terms, wanted, weights)]


def magnitudes(z, mu, logvar, all_mu, all_logvar, size, weights):
    """Sizes of a term and of each gradient, which rounding errors are relative to."""
    components = (mu, logvar) if all_mu is None else (all_mu, all_logvar)
    weight = sum(w.double().abs() for w in weights)[:, None, None]
    scale = log_weights(len(z), len(components[0]), size).to(z.device)[..., None]
    root = torch.exp(-0.5 * components[1])
    residual = (z.unsqueeze(1) - components[0]) * root
    logs = -0.5 * (residual**2 + components[1] + math.log(2 * math.pi))
    parts = 0.5 * (residual**2 + components[1].abs() + math.log(2 * math.pi))
    own = (z - mu) * torch.exp(-0.5 * logvar)
    value = (own**2 + logvar.abs() + z**2 + 2).sum(-1)
    of_z = ((own * torch.exp(-0.5 * logvar)).abs() + z.abs()) * weight[..., 0]
    of_mu, of_logvar = torch.zeros_like(components[0]), torch.zeros_like(components[0])
    together = logs.sum(-1, keepdim=True), parts.sum(-1, keepdim=True)
    for exponent, sizes in (together, (logs, parts)):
        share = torch.softmax(exponent + scale, 1)
        pairs = weight * share * (1 + sizes)
        value = value + (share * (sizes + scale.abs())).sum((1, 2))
        pull = (pairs * residual).abs() * root
        of_z, of_mu = of_z + pull.sum(1), of_mu + pull.sum(0)
        of_logvar = of_logvar + (pairs * (1 + residual**2)).sum(0)
    of_own = of_z, weight[..., 0] * (1 + own**2)
    of_components = [of_mu, of_logvar]
    if all_mu is None:
        of_components = [a + b for a, b in zip(of_own, of_components, strict=True)]
        return [float(t.max()) for t in (value, value, value, of_z, *of_components)]
    return [float(t.max()) for t in (value, value, value, of_z, *of_own, *of_components)]


def of(function, size):
    return lambda *tensors: function(*tensors, size)


def check(tensors, size, device, views=(None,) * 5):
    """Within twice eager's error and a few roundings of what was added up."""
    dtype = tensors[0].dtype
    given = [t if v is None or t is None else v(t) for t, v in zip(tensors, views, strict=True)]
    rows = len(given[0])
    weights = [upstream((rows,)).to(device), *(normal(rows, seed=n).to(device) for n in (8, 9))]
    double, single = ([t if t is None else t.to(d) for t in tensors] for d in (F64, F32))
    found = with_gradients(of(ops.kl_decomposition, size), tensors, weights, views)
    exact = with_gradients(of(textbook, size), double, weights, views)
    usual = single if dtype in LOW else tensors
    usual = with_gradients(of(textbook, size), usual, weights, views)
    sizes = magnitudes(*(t if t is None else t.double() for t in given), size, weights)
    for place, (f, e, u, most) in enumerate(zip(found, exact, usual, sizes, strict=True)):
        assert f.dtype == (accumulation(dtype) if place < 3 else dtype)
        error = (f.double() - e).abs()
        allowed = 2 * (u.double() - e).abs().max() + ATOL * rounding(accumulation(dtype)) * most
        if f.dtype in LOW:  # on GPUs a gradient is the sum of four that are rounded
            allowed = allowed + 2 * rounding(f.dtype) * e.abs().max()
        assert (error <= allowed).all(), (place, (error - allowed).max())


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_within_twice_eagers_error(size, dtype, device):
    *shape, dataset_size = size
    check(problem(*shape, device, dtype=dtype), dataset_size, device)


def test_bfloat16(device):
    check(problem(9, 3, None, device, dtype=BF16), 20, device)


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_narrow_and_far_from_the_origin(offset, device):
    check(problem(40, 4, None, device, std=0.02, offset=offset), 60_000, device)


def test_several_parts(device):
    """Whole blocks and others, in numba's sums over rows and over components."""
    rows, components = (130, 300) if INTERPRET else (700, 1100)
    check(problem(rows, 1, components, device), None, device)
    check(problem(rows, 1, None, device), 5000, device)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded_rows"])
def test_layouts(layout, device):
    tensors = problem(6, 7, 6, device)
    leaves, views = zip(*(lay(t, layout) for t in tensors), strict=True)
    check(list(leaves), None, device, list(views))


class TestExtremes:
    def test_a_weight_in_the_sum_and_not_beside_it(self, device):
        """Where z's own q is all there is, which weighs 1/N of a million. Mixed in as 1/M and taken
        out again, it would be what rounding leaves of 1/N - 1/M.
        """
        size, cols = 10**6, 2
        _, mu, logvar, *none = problem(3, cols, None, device, std=0.02)
        mu = mu + 100 * torch.arange(3, device=device)[:, None]
        first, second, _ = ops.kl_decomposition(mu + 0.01, mu, logvar, *none, size)
        expected = torch.full_like(first, math.log(size))
        torch.testing.assert_close(first, expected, rtol=2e-6, atol=0)
        torch.testing.assert_close(second, (cols - 1) * expected, rtol=2e-6, atol=0)

    def test_far_components_make_no_nan(self, device):
        """Their squares overflow in float32, or distances in standard deviations do."""
        z, mu, logvar, *none = problem(5, 3, None, device)
        mu[1:], logvar[2] = 1e30, -60.0
        z[:] = mu[:1] + 0.1
        ones = [torch.ones(5, device=device)] * 3
        found = with_gradients(of(ops.kl_decomposition, None), [z, mu, logvar, *none], ones)
        joint_less_marginals = torch.full((5,), 2 * math.log(5), device=device)
        torch.testing.assert_close(found[1], joint_less_marginals, rtol=1e-5, atol=1e-5)
        assert found[2].isfinite().all()

    def test_impossible_of_all_components(self, device):
        """Infinite there and there alone; what the density of a data set gives is 0, not NaN."""
        z = torch.tensor([[1e30, 0.0], [0.0, 0.0]], device=device)
        zero = torch.zeros(2, 2, device=device)
        tensors, ones = [z, zero, zero, zero, zero], [torch.ones(2, device=device)] * 3
        found = with_gradients(of(ops.kl_decomposition, None), tensors, ones)
        assert found[1].isfinite().tolist() == [False, True]
        assert all(t.isfinite().all() for t in found[6:])

    def test_nan_stays_where_it_is(self, device):
        z, *rest = problem(3, 2, None, device)
        z[1, 0] = math.nan
        for term in ops.kl_decomposition(z, *rest, 5):
            assert term.isnan().tolist() == [False, True, False]


class TestGradients:
    @pytest.mark.parametrize("components", [None, 41])
    def test_every_subset(self, components, device):
        """Each subset's gradients are those of all, bit for bit, and those of another run."""
        tensors, size = problem(40, 2, components, device), 99 if components is None else None
        weights = [upstream((40,)).to(device)] * 3
        whole = with_gradients(of(ops.kl_decomposition, size), tensors, weights)[3:]
        present = [t for t in tensors if t is not None]
        for wanted in range(1, 2 ** len(present), 1 if components is None else 5):
            leaves = [
                t.clone().requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(present)
            ]
            given = leaves + [None] * (5 - len(leaves))
            torch.autograd.backward(ops.kl_decomposition(*given, size), weights)
            for leaf, expected in zip(leaves, whole, strict=True):
                assert (leaf.grad is not None) == leaf.requires_grad
                assert leaf.grad is None or torch.equal(leaf.grad, expected)

    @pytest.mark.parametrize("term", range(3))
    def test_of_one_term(self, term, device):
        tensors, weight = problem(5, 3, 6, device, dtype=F64), normal(5).to(device)
        pair = (
            with_gradients(lambda *a, f=f: f(*a, None)[term : term + 1], tensors, [weight])
            for f in (ops.kl_decomposition, textbook_with_all)
        )
        for found, expected in zip(*pair, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("components", [None, 3])
    @pytest.mark.numba
    def test_second_derivatives_on_cpus(self, components, device):
        tensors = problem(2, 2, components, device, dtype=F64)
        leaves = [t.requires_grad_() for t in tensors if t is not None]
        rest = [None] * (5 - len(leaves))
        assert torch.autograd.gradgradcheck(
            lambda *a: ops.kl_decomposition(*a, *rest, None), leaves
        )


def textbook_with_all(*arguments):
    """In which every argument takes part in every term: gradients are 0, not None."""
    terms = textbook(*arguments)
    nothing = sum(0 * t.sum() for t in arguments if t is not None)
    return tuple(t + nothing for t in terms)


@pytest.mark.numba
@pytest.mark.parametrize("components", [None, 500])
def test_as_many_threads_as_there_may_be(components, device):
    """The same results: the parts that sums are made of depend on sizes alone."""
    size = 400 if components is None else None
    tensors, weights = problem(300, 5, components, device), [upstream((300,))] * 3
    threads, runs = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs.append(with_gradients(of(ops.kl_decomposition, size), tensors, weights))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.numba
def test_nothing_of_the_size_of_all_pairs(device):
    """[rows, components] alone would be 8 times what the largest allocation is."""
    rows = 1024
    leaves = [t.requires_grad_() for t in problem(rows, 2, None, device)[:3]]
    with torch.profiler.profile(profile_memory=True) as profile:
        terms = ops.kl_decomposition(*leaves, None, None, 5000)
        sum(t.sum() for t in terms).backward()
    most = max((abs(e.self_cpu_memory_usage) for e in profile.events()), default=0)
    assert 0 < most < rows * rows * 4 / 8


@pytest.mark.triton
@pytest.mark.parametrize("programs", [1, 100])
def test_stratified_in_stretches(programs, device, monkeypatch):
    """Several programs for what is owned, and for the others one or more."""
    from fused_elbo.kernels.triton import pairs

    for constant, value in (("OWN", 8), ("OTHERS", 4), ("PROGRAMS", programs)):
        monkeypatch.setattr(pairs, constant, value)
    check(problem(9, 2, None, device), 30, device)


def test_through_torch_compile_it_is_one_op(device):
    """Whatever the size of the data set, which is compiled once."""
    tensors = [t.requires_grad_() for t in problem(5, 3, None, device)[:3]]
    function = lambda *a: ops.kl_decomposition(*a[:3], None, None, a[3])  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (20, 21) if not INTERPRET else (20,):
        pairs = zip(compiled(*tensors, size), function(*tensors, size), strict=True)
        assert all(torch.equal(found, expected) for found, expected in pairs)


def test_agrees_with_its_twin(device):
    for components, size in ((None, 60), (5, None)):
        tensors = problem(4, 3, components, device, dtype=F64)
        pair = ops.kl_decomposition(*tensors, size), reference.kl_decomposition(*tensors, size)
        for found, expected in zip(*pair, strict=True):
            torch.testing.assert_close(found, expected)
