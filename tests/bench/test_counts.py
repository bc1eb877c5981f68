"""The benchmarks of counts: their oracle's veto, floors, sweep, memory, table and chart."""

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.counts import cases, tables
from bench.counts.entries import ENTRIES
from bench.drop_ins.scvi import LOST_DIGITS, original_log_nb, original_log_zinb
from bench.harness import measure, oracle, traffic
from bench.harness.cases import GRIDS, case_id
from bench.harness.operation import make_inputs, sparse_counts
from bench.reporting.formats import ratio
from bench.reporting.results import Device
from helpers import fake_runs

OURS = "fused_elbo"


def case_of(op, provider="eager", batch=16, genes=300):
    return cases.case_of(op, provider, batch, genes)


@pytest.mark.parametrize("op", ENTRIES)
def test_oracle_accepts_every_uncompiled_provider(op):
    for provider in ENTRIES[op].provider_names("cpu"):
        if provider == "pyro":
            pytest.importorskip("pyro")
        if provider != "compile":
            error = measure.Prepared(ENTRIES[op], case_of(op, provider), "cpu").error
            assert error < (1e-6 if provider == OURS else LOST_DIGITS["float32"])


def test_every_provider_competes():
    found = {op: ENTRIES[op].provider_names("cpu") for op in ENTRIES}
    rivals = ["eager", "distributions", "pyro", "compile"]
    assert found == {
        "negative_binomial_nll": [*rivals, OURS],
        "negative_binomial_nll_inflated": ["eager", "pyro", "compile", OURS],
        "softmax_negative_binomial_nll": [*rivals, OURS],
        "multinomial_nll": ["eager", "distributions", "builtin", "compile", OURS],
    }


def test_nine_in_ten_counts_are_zero():
    x = sparse_counts(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert abs((x == 0).double().mean() - 0.9) < 0.005
    assert abs((x[x > 0] == 1).double().mean() - 0.61) < 0.02
    assert abs((x[x > 0] > 8).double().mean() - 0.03) < 0.01
    assert torch.equal(x, x.floor())


def no_factorial(log_mean, log_theta, x):
    of_counts = original_log_nb(x, log_mean.exp(), log_theta.exp()) + torch.lgamma(x + 1)
    return -of_counts.sum(-1)


def frozen_dispersion(log_mean, log_theta, x):
    nll = -original_log_nb(x, log_mean.exp(), log_theta.exp().detach()).sum(-1)
    return nll + 0 * log_theta.sum()


def genuine_for_inflated(log_mean, log_theta, zero_logits, x):
    """The sign of the logits."""
    return -original_log_zinb(x, log_mean.exp(), log_theta.exp(), -zero_logits).sum(-1)


def one_library(logits, log_theta, log_library, x):
    mu = log_library.mean().exp() * logits.softmax(-1)
    return -original_log_nb(x, mu, log_theta.exp()).sum(-1).mean()


def no_constant(logits, x):
    return -(x * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize(
    ("op", "function", "message"),
    [
        ("negative_binomial_nll", no_factorial, "output rows"),
        ("negative_binomial_nll", frozen_dispersion, "gradient of log_theta"),
        ("negative_binomial_nll_inflated", genuine_for_inflated, "output rows"),
        ("softmax_negative_binomial_nll", one_library, "output scalar|gradient"),
        ("multinomial_nll", no_constant, "output rows"),
    ],
)
def test_oracle_finds(op, function, message):
    with pytest.raises(oracle.WrongResultError, match=message):
        measure.Prepared(ENTRIES[op], case_of(op), "cpu", function)


def test_oracle_of_zero_inflation_is_of_probabilities():
    """Against the mixture of probabilities, of which the zeros' is 1 at 0 alone."""
    generator = torch.Generator().manual_seed(1)
    m, a, z = torch.randn(3, 7, 50, generator=generator, dtype=torch.float64)
    x = sparse_counts(torch.randn(7, 50, generator=generator, dtype=torch.float64))
    logits = m - a
    density = torch.distributions.NegativeBinomial(a.exp(), logits=logits).log_prob(x).exp()
    p = z.sigmoid()
    wanted = -(p * (x == 0) + (1 - p) * density).log().sum(-1)
    torch.testing.assert_close(oracle.zero_inflated_negative_binomial(m, a, z, x), wanted)


def test_floor_is_the_size_of_the_tensors():
    """All read and results written; for training all read again, and gradients written."""
    for op, operation in ENTRIES.items():
        case = case_of(op)
        given = make_inputs(operation, case, "cpu", 0)
        outputs = oracle.as_tuple(operation.providers["eager"](*given))
        read = sum(t.nbytes for t in given)
        gradients = sum(t.nbytes for t in given if t.requires_grad)
        rows = sum(t.nbytes for t in outputs)
        if operation.outputs == ("scalar",):
            assert operation.floor(case) == read + gradients
        else:
            assert isinstance(operation.floor, traffic.Floor)
            assert operation.floor(case) == 2 * read + gradients + 2 * rows


@pytest.mark.parametrize("where", GRIDS)
def test_sweep(where):
    swept = cases.sweep(ENTRIES, *where)
    assert len(set(map(case_id, swept))) == len(swept)
    assert {case.op for case in swept} == set(ENTRIES)
    found = {(case.op, case.batch, case.latent) for case in swept}
    if where[1] == "full":
        four = {(b, g) for b in (128, 512) for g in (2000, 8000)}
        for op in ENTRIES:
            wide = {(512, 20_000)} if op == "multinomial_nll" else set()
            assert {shape[1:] for shape in found if shape[0] == op} == four | wide
    if where == ("cpu", "default"):
        assert len(swept) < 25


def test_ours_stores_gradients_alone():
    """No tensor of the size of the counts besides: a fifth of eager's memory."""
    for op, operation in ENTRIES.items():
        peaks = {
            name: measure.peak_memory(
                measure.Prepared(operation, case_of(op, name, 256, 500), "cpu")
            )
            for name in ("eager", OURS)
        }
        elements = 4 * 256 * 500
        gradients = 2 if op.endswith("inflated") else 1
        assert peaks[OURS] < (gradients + 0.3) * elements, op
        assert peaks[OURS] < peaks["eager"] / (2 if op == "multinomial_nll" else 5), op


SECONDS = {"eager": 4e-3, "pyro": 5e-3, "compile": 3e-3, OURS: 1e-3}


def made_up_run():
    benchmarks = [
        fake_runs.row(
            cases.case_of(op, name, batch, 2000), fake_runs.times(batch * base, 0.01),
            clock="host", peak_bytes=1000 * (9 if name == "eager" else 1 + i), floor_bytes=12,
        )
        for op in ("negative_binomial_nll", "softmax_negative_binomial_nll")
        for batch in (128, 512)
        for i, (name, base) in enumerate(SECONDS.items())
    ]  # fmt: skip
    return fake_runs.run(1, benchmarks)


def test_table_has_time_and_memory(tmp_path):
    device = Device(fake_runs.write(tmp_path, 1, made_up_run()))
    title, intro, verdict, table = tables.sections(device)
    assert title == "## Counts"
    assert "nine in ten are 0" in intro
    assert "4 / 0 / 0" in verdict
    first = table.shown(0)[1][0]
    assert first[1] == "128 x 2000"
    assert first[3].text == ratio(4.0)
    assert first[4].text == f"{ratio(3.0)} (compile)"


def test_plots_are_the_same_twice_and_need_no_torch(tmp_path):
    folder = tmp_path / "results"
    device = fake_runs.write(folder, 1, made_up_run())
    _, files = fake_runs.redraw_twice(folder, tmp_path / "twin")
    assert {p.stem for p in files if p.suffix == ".png"} == {"overview", "counts"}
    assert "## Counts" in (device / "README.md").read_text()
