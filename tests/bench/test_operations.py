"""The benchmarks of the operations: their oracle's veto, byte models, sweep."""

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

import fused_elbo
from bench.harness import functions, measure, oracle, traffic
from bench.harness.cases import BOTH, DTYPES, EVENTS, GRIDS, Case
from bench.harness.operation import make_inputs
from bench.harness.providers import PROVIDERS
from bench.operations.cases import of_grid, shapes, sweep
from bench.operations.entries import ENTRIES


def right_kl(mu, logvar):
    return ENTRIES["gaussian_kl"].providers["eager"](mu, logvar)


def wrong_gradient(mu, logvar):
    return right_kl(mu, logvar.detach()) + 0 * logvar.sum(-1)


def wrong_constant(recon, x):
    return 0.5 * (recon - x).pow(2).sum(-1)


def stale_noise(mu, logvar):
    eps = torch.randn(mu.shape, generator=torch.Generator().manual_seed(1))
    return mu + torch.exp(0.5 * logvar) * eps


def wrong_scale(mu, logvar):
    return mu + torch.exp(logvar) * torch.randn_like(mu)


def repeated_noise(mu, logvar):
    return mu + torch.exp(0.5 * logvar) * torch.randn(len(mu), 1).expand_as(mu)


@pytest.mark.parametrize(
    ("op", "function", "message"),
    [
        ("gaussian_kl", wrong_gradient, "gradient of logvar"),
        ("gaussian_nll", wrong_constant, "output rows"),
        ("gaussian_rsample", stale_noise, "same sample"),
        ("gaussian_rsample", wrong_scale, "variance"),
        ("gaussian_rsample", repeated_noise, "noise"),
    ],
)
def test_oracle_finds(op, function, message):
    case = Case(op, "eager", 128, 64, "float32", "forward+backward")
    with pytest.raises(oracle.WrongResultError, match=message):
        measure.Prepared(ENTRIES[op], case, "cpu", function)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [(op, dtype) for op in ENTRIES for dtype in (DTYPES if ENTRIES[op].few_dtypes else BOTH)],
)
def test_oracle_accepts_every_uncompiled_provider(op, dtype):
    for provider in ENTRIES[op].provider_names("cpu"):
        if PROVIDERS[provider].compile is not None:
            continue
        case = Case(op, provider, 32, 1024, dtype, "forward+backward")
        assert measure.Prepared(ENTRIES[op], case, "cpu").error < ENTRIES[op].tolerance[dtype]


@pytest.mark.parametrize(
    ("op", "forward", "backward"),
    [
        ("rsample_kl", 12, 20),
        ("gaussian_kl", 8, 16),
        ("gaussian_nll", 8, 12),
        ("gaussian_nll_learned", 12, 20),
        ("bernoulli_nll", 8, 12),
        ("laplace_nll", 8, 12),
        ("poisson_nll", 8, 12),
        ("categorical_nll", 4, 8),
    ],
)
def test_byte_models_are_the_speed_contract(op, forward, backward):
    assert ENTRIES[op].floor.element_bytes("forward") == forward
    assert ENTRIES[op].floor.element_bytes("forward+backward") == forward + backward
    assert (
        ENTRIES[op].floor.element_bytes("forward+backward", "bfloat16") == (forward + backward) / 2
    )


def test_step_takes_the_likelihoods_gradient_in_forward():
    """12 bytes a pixel in all, and sample + KL as ever."""
    case = Case("elbo_step", "eager", 10, 5, "float32", "forward+backward")
    assert ENTRIES["elbo_step"].floor(case) == 10 * (12 * EVENTS + 32 * 5)


def test_floor_is_the_size_of_the_tensors():
    """The floors against the tensors that the operations really have."""
    plain = {op: o for op, o in ENTRIES.items() if isinstance(o.floor, traffic.Floor)}
    assert set(ENTRIES) - set(plain) == {"elbo_step"}
    for op, operation in plain.items():
        case = Case(op, "eager", 6, 10, "float32", "forward")
        tensors = make_inputs(operation, case, "cpu", 0)
        outputs = oracle.as_tuple(operation.providers["eager"](*tensors))
        assert operation.floor(case) == sum(t.nbytes for t in [*tensors, *outputs])


def test_some_are_timed_at_corners_alone():
    grid = GRIDS["cpu", "full"]
    swept = sweep(ENTRIES, "cpu", shapes(grid), grid.dtypes)
    cells = {op: {c[2:4] for c in swept if c.op == op} for op in ENTRIES}
    assert cells["poisson_nll"] == {(b, d) for b in (64, 4096) for d in (16, 256)}
    assert len(cells["gaussian_nll"]) == 9


def test_a_few_cells_have_other_dtypes():
    """The largest and the middle shape, forward + backward, by everyone outside of graphs."""
    grid = GRIDS["cpu", "default"]
    swept = of_grid(ENTRIES, "cpu", grid)
    main = [case for case in swept if case.dtype == "float32"]
    assert {(c.op, c.batch, c.latent) for c in main if c.batch == 1} == {("rsample_kl", 1, 10**6)}
    assert swept[: len(main)] == main
    few = swept[len(main) :]
    assert {(c.batch, c.latent) for c in few} == {(4096, 256), (512, 64)}
    assert {c.dtype for c in few} == {"bfloat16", "float64"}
    assert all(c.backward for c in few)
    ops = {"gaussian_kl", "bernoulli_nll"}
    assert {(c.op, c.provider) for c in few} == {
        (op, name)
        for op in ops
        for name in ENTRIES[op].provider_names("cpu")
        if name != "fused_elbo-compiled"
    }


def test_a_brief_grid_spans_the_full_one():
    """Training at the corners and in the middle; nothing that is left to the full grid."""
    brief = of_grid(ENTRIES, "cpu", GRIDS["cpu", "default"])
    full = of_grid(ENTRIES, "cpu", GRIDS["cpu", "full"])
    assert set(brief) < set(full)
    assert all(case.backward and not ENTRIES[case.op].full_only for case in brief)
    kl = {(c.batch, c.latent) for c in brief if (c.op, c.dtype) == ("gaussian_kl", "float32")}
    assert kl == {(b, d) for b in (64, 4096) for d in (16, 256)} | {(512, 64)}


def test_our_functions_are_compiled_where_an_entry_says_so():
    """In the graph is the public function, and not the textbook."""
    inside = {op for op, o in ENTRIES.items() if "fused_elbo-compiled" in o.provider_names("cpu")}
    assert inside == {"rsample_kl", "elbo_step", "gaussian_kl"}
    function = functions.get("fused_elbo-compiled", ENTRIES["gaussian_kl"], "cpu")
    assert function._torchdynamo_orig_callable is fused_elbo.gaussian_kl
    function = functions.get("compile", ENTRIES["gaussian_kl"], "cpu")
    assert function._torchdynamo_orig_callable is ENTRIES["gaussian_kl"].providers["eager"]


def test_sweep_spans_its_grid_from_the_start():
    grid = GRIDS["cuda", "full"]
    swept = shapes(grid)
    assert len(set(swept)) == len(grid.batches) * len(grid.latents)
    corners = {(b, d) for b in (64, 65536) for d in (8, 1024)}
    assert set(swept[:4]) == corners
    assert swept[0] == (65536, 1024)
