"""The benchmarks of all pairs: their oracle's veto, parts, floors, memory, sweep, charts."""

import math

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.harness import functions, measure, oracle
from bench.harness.cases import GRIDS, case_id
from bench.harness.operation import TOLERANCE, make_inputs
from bench.harness.providers import COMPILED
from bench.mixtures import cases, entries, results, tables
from bench.mixtures import test_mixtures as suite
from bench.mixtures.entries import ENTRIES
from bench.reporting.results import Device
from helpers import fake_runs

OURS = "fused_elbo"
SHAPES = {"mixture_log_prob": (9, 5, 6), "kl_aggregate": (5, 9, 6), "kl_stratified": (7, 7, 6)}


def case_of(op, provider="eager"):
    return cases.case_of(op, provider, *SHAPES[op])


@pytest.mark.parametrize("op", ENTRIES)
def test_oracle_accepts_every_uncompiled_provider(op):
    for provider in ENTRIES[op].provider_names("cpu"):
        if not provider.startswith("compile"):
            prepared = measure.Prepared(ENTRIES[op], case_of(op, provider), "cpu")
            assert prepared.error < 0.2 * TOLERANCE["float32"]


def test_every_provider_competes():
    first, *others = (ENTRIES[op].provider_names("cuda") for op in ENTRIES)
    assert first == ["eager", "distributions", *COMPILED, "compile-chunked", OURS]
    assert others == [["eager", *COMPILED, "compile-chunked", OURS]] * 2


@pytest.mark.parametrize("op", ENTRIES)
def test_parts_are_the_whole(op, monkeypatch):
    """The function in parts of 2 rows, with a last one of 1, not compiled here."""
    sizes = []

    def uncompiled(function):
        def counted(*inputs):
            sizes.append(len(inputs[0]))
            return function(*inputs)

        return counted

    monkeypatch.setattr(functions, "symbolic", uncompiled)
    monkeypatch.setitem(entries.PART, "cpu", 2 * math.prod(SHAPES[op][1:]))
    monkeypatch.setattr(measure, "SLOW", -1.0)  # no warm-up
    measure.Prepared(ENTRIES[op], case_of(op, "compile-chunked"), "cpu")
    rows = SHAPES[op][0]
    assert sizes[: rows // 2 + 1] == [2] * (rows // 2) + [1]


def not_normalised(z, mu, logvar):
    return entries.eager_mixture(z, mu, logvar) + 0.01


def weights_detached(z, mu, logvar):
    """Right in value; the gradient is of the nearest component alone."""
    value = entries.eager_mixture(z, mu, logvar)
    nearest = entries.log_density(z.unsqueeze(1), mu, logvar).sum(-1).amax(1)
    return value.detach() + nearest - nearest.detach()


def batch_for_dataset(z, mu, logvar, all_mu, all_logvar):
    terms = entries.eager_aggregate(z, mu, logvar, mu, logvar)
    return tuple(term + 0 * (all_mu.sum() + all_logvar.sum()) for term in terms)


def down_a_column(z, mu, logvar):
    """The published fault: the weight of "one other" is always the same example's."""
    batch, others = len(z), len(z) - 1
    weights = torch.full((batch, batch), 1 / others)
    weights.view(-1)[:: others + 1] = 1 / entries.DATASET_SIZE
    weights.view(-1)[1 :: others + 1] = 1 / others - 1 / entries.DATASET_SIZE
    weights[others - 1, 0] = 1 / others - 1 / entries.DATASET_SIZE
    return entries.weighted_terms(z, mu, logvar, weights.log(), mu, logvar)


def weights_added_for_each_latent(z, mu, logvar):
    """Another: log W before the sum over latents."""
    log_densities = entries.log_density(z.unsqueeze(1), mu, logvar)
    weighted = log_densities + entries.stratified_log_weights(z).unsqueeze(-1)
    joint, marginals = weighted.sum(-1).logsumexp(1), weighted.logsumexp(1).sum(-1)
    return entries.three_terms(z, mu, logvar, joint, marginals)


@pytest.mark.parametrize(
    ("op", "function", "message"),
    [
        ("mixture_log_prob", not_normalised, "output rows"),
        ("mixture_log_prob", weights_detached, "gradient of"),
        ("kl_aggregate", batch_for_dataset, "output rows"),
        ("kl_stratified", down_a_column, "output rows"),
        ("kl_stratified", weights_added_for_each_latent, "output rows"),
    ],
)
def test_oracle_finds(op, function, message):
    with pytest.raises(oracle.WrongResultError, match=message):
        measure.Prepared(ENTRIES[op], case_of(op), "cpu", function)


def test_floor_is_the_size_of_the_tensors():
    for op, operation in ENTRIES.items():
        case = case_of(op)
        inputs = make_inputs(operation, case, "cpu", 0)
        outputs = oracle.as_tuple(operation.providers["eager"](*inputs))
        read, written = (sum(t.nbytes for t in tensors) for tensors in (inputs, outputs))
        assert operation.floor(case) == 3 * read + 2 * written
        assert operation.floor(case._replace(direction="forward")) == read + written


@pytest.mark.parametrize("op", ENTRIES)
def test_memory_is_foretold(op):
    """The count of tensors of all pairs gives it to 5 %, where those are all that matters."""
    for provider in ("eager", "distributions"):
        if provider in ENTRIES[op].providers:
            case = cases.case_of(op, provider, 128, 128, 32)
            prepared = measure.Prepared(ENTRIES[op], case, "cpu")
            needed = ENTRIES[op].needed(case)
            assert measure.peak_memory(prepared) == pytest.approx(needed, rel=0.05)


def test_what_is_too_large_is_left_out_and_says_why(monkeypatch):
    run, case = fake_runs.Run(), cases.case_of("mixture_log_prob", "eager", *cases.HUGE)
    monkeypatch.setattr(suite, "DEVICE", "cpu")
    with pytest.raises(pytest.skip.Exception, match="needs 20"):
        suite.test_mixtures(None, run, case)
    (entry,) = run.not_timed
    assert (entry["status"], entry["reason"]) == ("left out", "needs 20.1 GiB, above 4 GiB")
    assert (entry["provider"], entry["samples"]) == ("eager", 4096)


@pytest.mark.parametrize("where", GRIDS)
def test_sweep(where):
    """A batch is a part of its data set, or all; every id is one case; the huge ones are last."""
    swept = cases.sweep(ENTRIES, *where)
    assert len(set(map(case_id, swept))) == len(swept)
    assert {case.op for case in swept} == set(ENTRIES)
    assert all(c.samples >= c.batch for c in swept if c.op == "kl_aggregate")
    assert all(c.samples == c.batch for c in swept if c.op == "kl_stratified")
    assert all(c.batch <= entries.DATASET_SIZE for c in swept)
    huge = [(c.batch, c.samples, c.latent) == cases.HUGE for c in swept]
    assert huge == sorted(huge)
    assert {c.direction for c in swept if c.op == "mixture_log_prob"} == {
        "forward", "forward+backward"
    }  # fmt: skip


def test_answers_are_kept_for_a_cell(monkeypatch):
    """The next provider has the inputs of the last; another cell has others."""
    asked = []
    right = ENTRIES["mixture_log_prob"].exact

    def counted(*inputs):
        asked.append(len(inputs[1]))
        return right(*inputs)

    monkeypatch.setitem(ENTRIES["mixture_log_prob"].__dict__, "exact", counted)
    measure.forget_inputs()
    for components in (5, 5, 8):
        for provider in ("eager", OURS):
            case = cases.case_of("mixture_log_prob", provider, 3, components, 2)
            measure.Prepared(ENTRIES[case.op], case, "cpu")
    assert asked == [5, 8]


SECONDS = {"eager": 40e-3, "compile": 8e-3, "compile-chunked": 4e-3, OURS: 2e-3}


def made_up_run(device="cpu"):
    """Every cell of the full grid that is not huge: eager 20 times as slow, the best 2."""
    benchmarks = []
    for case in cases.sweep(ENTRIES, "cpu", "full"):
        if case.provider in SECONDS and case.samples < 4096:
            seconds = SECONDS[case.provider] * cases.pairs(case) / 2**20
            peak = 1000 * case.batch * (1 if case.provider == OURS else case.samples)
            more = {"clock": "host", "floor_bytes": 12, "peak_bytes": peak}
            benchmarks.append(fake_runs.row(case, fake_runs.times(seconds, 0.01), **more))
    return fake_runs.run(1, benchmarks, device)


def test_speedups_are_over_each_baseline(tmp_path):
    table = results.training(Device(fake_runs.write(tmp_path, 1, made_up_run())))
    ratios = results.against_ours(table).groupby("provider").speedup
    assert ratios.min().to_dict() == pytest.approx(
        {"compile": 4.0, "compile-chunked": 2.0, "eager": 20.0}
    )
    assert ratios.max().to_dict() == pytest.approx(ratios.min().to_dict())
    assert table[table.provider == OURS].per_pair.tolist() == pytest.approx(
        [2e-3 / 2**20] * (table.provider == OURS).sum()
    )


def test_lines_are_where_most_cells_are(tmp_path):
    table = results.training(Device(fake_runs.write(tmp_path, 1, made_up_run())))
    mixture, square = (table[table.op == op] for op in ("mixture_log_prob", "kl_stratified"))
    line = results.line(mixture, "batch")
    assert set(line.batch) == {32, 128, 512, 2048}
    assert set(line.samples) == {512}
    assert set(line.latent) == {64}
    assert set(results.line(mixture, "latent").latent) == {4, 16, 64}
    assert set(results.line(square, "batch").samples) == {32, 128, 512}
    assert results.line(square, "samples").empty


def test_verdict(tmp_path):
    device = Device(fake_runs.write(tmp_path, 1, made_up_run()))
    cells = results.cells(device)
    assert cells.best.tolist() == pytest.approx([2.0] * len(cells))
    text = tables.verdict(cells)
    assert f"{len(cells)} / 0 / 0 cells." in text
    assert "Peak memory is 0.00098\u00d7 to 0.10\u00d7 eager's" in text


def test_plots_are_the_same_twice_and_need_no_torch(tmp_path):
    folder = tmp_path / "results"
    device = fake_runs.write(folder, 1, made_up_run())
    shown, files = fake_runs.redraw_twice(folder, tmp_path / "twin")
    assert all("512 x 512 x 64" in text for text in shown)
    assert {p.stem for p in files if p.suffix == ".png"} == {
        "overview", "mixtures-speedup-float32", "mixtures-time-float32", "mixtures-memory-float32"
    }  # fmt: skip
    text = (device / "README.md").read_text()
    assert "## Mixtures" in text
    assert "| `mixture_log_prob` | forward+backward | 128 x 500 x 32 |" in text
    assert "2.00\u00d7 (compile-chunked)" in text
