"""The benchmarks of K samples: their oracle's veto, floors, sweep, largest K, charts."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench.harness import functions, measure, memory, oracle, runs
from bench.harness.cases import EVENTS, GRIDS, case_id
from bench.harness.operation import make_inputs
from bench.harness.providers import COMPILED
from bench.operations.entries import eager_bernoulli_nll
from bench.reporting.results import Device
from bench.samples import cases, entries, largest, results, tables
from bench.samples.entries import ENTRIES
from fused_elbo.estimators.dispatch import sample_calls
from helpers import fake_runs

OURS = "fused_elbo"


def case_of(op, provider="eager", samples=16, batch=32, latent=64, dtype="float32"):
    return cases.case_of(op, provider, samples, batch, latent, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("op", ENTRIES)
def test_oracle_accepts_every_uncompiled_provider(op, samples, dtype):
    for provider in ENTRIES[op].provider_names("cpu"):
        if provider != "compile":
            case = case_of(op, provider, samples, dtype=dtype)
            assert (
                measure.Prepared(ENTRIES[op], case, "cpu").error
                < ENTRIES["iwae_step"].tolerance[dtype]
            )


def test_every_provider_competes():
    assert ENTRIES["iwae_encoder"].provider_names("cpu") == [
        "eager",
        "distributions",
        "compile",
        OURS,
    ]
    ours = [OURS, "fused_elbo-chunked"]
    assert ENTRIES["iwae_step"].provider_names("cuda") == [
        "eager", "distributions", "builtin", *COMPILED, *ours
    ]  # fmt: skip
    assert ENTRIES["decoder"].provider_names("cpu") == ["eager", "compile"]


def no_prior(mu, logvar, samples=16):
    z, log_ratio = entries.eager_encoder(mu, logvar, samples)
    return z, log_ratio + 0.5 * z.square().sum(-1)


def score_left_out(mu, logvar, samples=16):
    z, _ = entries.eager_encoder(mu, logvar, samples)
    return z, oracle.log_ratio(z, mu.detach(), logvar.detach())


def one_sample_for_all(mu, logvar, samples=16):
    z, log_ratio = entries.eager_encoder(mu, logvar, 1)
    return z.expand(samples, -1, -1), log_ratio.expand(samples, -1)


def step(bound, weight=1.0):
    """A step with a bound of the log weights, and a likelihood of another weight."""

    def function(mu, logvar, x, *decoder):
        z, log_ratio = entries.eager_encoder(mu, logvar, 16)
        nll = eager_bernoulli_nll(entries.decode(z, *decoder), x)
        return z.detach(), -bound(log_ratio - weight * nll).mean()

    return function


def sum_for_mean(log_weights):
    return 100 * torch.logsumexp(log_weights, 0) - 99 * entries.eager_bound(log_weights).detach()


def elbo(log_weights):
    """Its value is near enough to the bound's; its gradients are not."""
    mean = log_weights.mean(0)
    return mean + (entries.eager_bound(log_weights) - mean).detach()


def weights_squared(log_weights):
    shifted = 0.5 * torch.logsumexp(2 * log_weights, 0)
    return shifted + (entries.eager_bound(log_weights) - shifted).detach()


def frozen_decoder(mu, logvar, x, *decoder):
    z, loss = step(entries.eager_bound)(mu, logvar, x, *(t.detach() for t in decoder))
    return z, loss + 0 * sum(t.sum() for t in decoder)


@pytest.mark.parametrize(
    ("op", "function", "message"),
    [
        ("iwae_encoder", no_prior, "output sample rows"),
        ("iwae_encoder", score_left_out, "gradient of"),
        ("iwae_encoder", one_sample_for_all, "noise"),
        ("iwae_step", step(sum_for_mean), "output scalar|gradient"),
        ("iwae_step", step(elbo), "gradient of mu"),
        ("iwae_step", step(weights_squared), "gradient of"),
        ("iwae_step", step(entries.eager_bound, 0.99), "output scalar"),
        ("iwae_step", frozen_decoder, "gradient of weight1"),
    ],
)
def test_oracle_finds(op, function, message):
    with pytest.raises(oracle.WrongResultError, match=message):
        measure.Prepared(ENTRIES[op], case_of(op), "cpu", function)


def test_oracle_sees_the_chunks(monkeypatch):
    """Chunks that all draw the first one's noise are found out."""
    right = sample_calls.samples_of_stream

    def first_again(*arguments, first_sample, **options):
        return right(*arguments, first_sample=0, **options)

    monkeypatch.setattr(sample_calls, "samples_of_stream", first_again)
    with pytest.raises(oracle.WrongResultError, match="correlation of samples"):
        measure.Prepared(ENTRIES["iwae_step"], case_of("iwae_step", "fused_elbo-chunked"), "cpu")


def test_floor_is_the_size_of_the_tensors():
    """Inputs and outputs of every stage, forward and backward, from the real tensors."""
    samples, batch, latent = 5, 6, 10
    shape = {"samples": samples, "batch": batch, "latent": latent}
    sizes = {}
    for op in ("iwae_encoder", "decoder"):
        case = case_of(op, **shape)
        inputs = make_inputs(ENTRIES[op], case, "cpu", 0)
        function = functions.get("eager", ENTRIES[op], "cpu", samples)
        outputs = oracle.as_tuple(function(*inputs))
        # Read or written forward; backward again the inputs, and the gradients of all.
        inside = sum(t.nbytes for t in inputs)
        sizes[op] = 3 * inside + 2 * sum(t.nbytes for t in outputs)
        assert ENTRIES[op].floor(case) == sizes[op]
    logits, x = samples * batch * EVENTS * 4, batch * EVENTS * 4
    likelihood = 3 * logits + 2 * x + 2 * 4 * samples * batch
    whole = ENTRIES["iwae_step"].floor(case_of("iwae_step", **shape))
    assert whole == sum(sizes.values()) + likelihood


def test_floor_of_the_encoder_is_the_speed_contract():
    """4 + 4 bytes for each element of z, 8 + 16 for each of mu, 4 + 4 for each log ratio."""
    floor = ENTRIES["iwae_encoder"].floor(case_of("iwae_encoder", "eager", 7, 3, 5))
    assert floor == 8 * (7 * 3 * 5) + 24 * (3 * 5) + 8 * (7 * 3)


@pytest.mark.parametrize("where", GRIDS)
def test_sweep_stays_within_its_limit_and_has_a_decoder_for_each_step(where):
    swept = cases.sweep(ENTRIES, *where)
    assert len(set(map(case_id, swept))) == len(swept)
    for case in swept:
        width = case.latent if case.op == "iwae_encoder" else max(case.latent, EVENTS)
        assert case.samples * case.batch * width <= ENTRIES[case.op].grids[where].limit
    eager = [c for c in swept if c.provider == "eager"]
    cells = {op: {c[2:] for c in eager if c.op == op} for op in ENTRIES}
    assert cells["iwae_step"] == cells["decoder"] != set()
    steps = [i for i, c in enumerate(eager) if c.op == "iwae_step"]
    assert all(eager[i]._replace(op="decoder") == eager[i + 1] for i in steps)
    for op, operation in ENTRIES.items():
        grid = operation.grids[where]
        published = (grid.batches[0], grid.latents[0])
        found = {c.samples for c in swept if c.op == op and (c.batch, c.latent) == published}
        assert found == set(grid.samples), "the published shape has all K"
        if where[1] == "full" or where == ("cuda", "default"):
            assert set(grid.samples) == {1, 8, 64, 512}


def test_peak_memory_of_samples_is_always_counted():
    small = case_of("iwae_encoder", samples=2, batch=2, latent=2)
    assert measure.peak_memory(measure.Prepared(ENTRIES[small.op], small, "cpu")) > 0


def test_chunks_take_the_memory_of_a_chunk():
    def peak(provider, samples):
        case = case_of("iwae_step", provider, samples)
        prepared = measure.Prepared(ENTRIES[case.op], case, "cpu")
        return memory.peak_bytes(prepared.call, prepared.sets[0], "cpu")

    assert peak("fused_elbo-chunked", 64) < 1.02 * peak("fused_elbo-chunked", 16)
    assert peak("fused_elbo", 64) > 3 * peak("fused_elbo", 16)


@pytest.mark.parametrize("limit", [1, 2, 3, 100, 4096, 5000])
def test_largest_by_trying(limit):
    attempts = []

    def fits(samples):
        attempts.append(samples)
        return samples <= limit

    found, tried, ended = largest.by_trying(fits, 2**16)
    assert ended == "memory"
    assert tried == attempts
    assert found <= limit <= found + max(1, found // largest.GAP)
    assert len(tried) < 2 * limit.bit_length() + 6


def test_largest_by_trying_ends_where_nothing_stops_it():
    assert largest.by_trying(lambda _: True, 64) == (64, [1, 2, 4, 8, 16, 32, 64], "not reached")


def test_nothing_fits():
    assert largest.by_trying(lambda _: False, 64) == (0, [1], "memory")


def test_largest_by_counting():
    """On a line; on one that the allocator rounds up; on one that is none; within reach."""
    assert largest.by_counting(lambda k: 1000 + 30 * k, 10_000, 10**6)[0] == 300
    rounded = largest.by_counting(lambda k: 1000 + 30 * k + (10 if k > 100 else 0), 10_000, 10**6)
    assert rounded[0] == 299
    assert rounded[3] == 1000 + 30 * 299 + 10
    with pytest.raises(RuntimeError, match="not linear"):
        largest.by_counting(lambda k: 1000 + k**2, 10**6, 10**6)
    assert largest.by_counting(lambda k: 1000 + 30 * k, 10_000, 200)[2] == "not reached"
    assert largest.by_counting(lambda k: 1000, 10_000, 200)[:3] == (
        200,
        [8, 24, 200],
        "not reached",
    )


def test_largest_stays_within_its_budget(monkeypatch):
    monkeypatch.setitem(largest.BUDGET, "smoke", 2**24)
    monkeypatch.setitem(largest.SHAPE, "cpu", (16, 8))
    monkeypatch.setitem(largest.MOST["cpu"], "smoke", 10**6)
    step, found = largest.find("eager", "cpu", "smoke")
    assert 0.97 * 2**24 < found["bytes"] <= 2**24
    assert step.peak(found["samples"] + 3) > 2**24


def test_results_without_samples_still_load():
    """A run from before K: it is one sample everywhere."""
    info = {**case_of("iwae_encoder")._asdict(), "op": "gaussian_kl"}
    del info["samples"], info["suite"]
    assert runs.case_of(info).samples == 1


SECONDS = {"eager": 4e-3, "builtin": 2e-3, "fused_elbo": 1e-3, "fused_elbo-chunked": 5e-4}


def entry(op, provider, samples, batch, seconds, peak):
    case = case_of(op, provider, samples, batch, 16)
    more = {"clock": "host", "peak_bytes": peak, "floor_bytes": 12 * samples}
    return fake_runs.row(case, fake_runs.times(seconds, 0.01), **more)


def made_up_run(decoder=5e-4, device="cpu"):
    """All operations on K samples, and the largest K."""
    benchmarks = []
    for samples in (1, 8, 64):
        for batch in (64, 512):
            scale = samples * batch
            for op in ("iwae_encoder", "iwae_step"):
                benchmarks += [
                    entry(op, name, samples, batch, scale * base, 1000 * scale * (i + 1))
                    for i, (name, base) in enumerate(SECONDS.items())
                ]
            benchmarks.append(entry("decoder", "eager", samples, batch, scale * decoder, 1))
    for name, most in (("eager", 300), ("fused_elbo-chunked", 4096)):
        info = {"suite": "largest", "id": f"largest-{name}", "provider": name, "batch": 64}
        info |= {"latent": 16, "samples": most, "bytes": 2**28, "limit": 2**28, "budget": True}
        info |= {"ended": "memory" if most < 1000 else "not reached", "tried": [8, 24, most]}
        benchmarks.append({"extra_info": info, "stats": {"median": 1.0}})
    return fake_runs.run(1, benchmarks, device)


def test_share_of_the_loss_is_of_one_run(tmp_path):
    """A later run with another decoder alone does not mix with the earlier steps."""
    device = fake_runs.write(tmp_path, 1, made_up_run())
    later = made_up_run(decoder=1e-6)
    later["benchmarks"] = [
        b for b in later["benchmarks"] if b["extra_info"].get("op") in (None, "decoder")
    ]
    shares = results.shares(Device(device).right).set_index(["provider", "samples", "batch"]).share
    assert shares["eager", 8, 64] == pytest.approx(1 - 5e-4 / 4e-3)
    assert shares["fused_elbo", 64, 512] == pytest.approx(0.5)
    assert "fused_elbo-chunked" not in shares.index.get_level_values("provider")
    fake_runs.write(tmp_path, 2, later)
    assert results.shares(Device(device).right).empty


def test_our_own_chunks_are_no_baseline(tmp_path):
    speedups = Device(fake_runs.write(tmp_path, 1, made_up_run())).speedups
    assert set(speedups.rival) == {"builtin"}
    assert speedups.best.tolist() == pytest.approx([2.0] * len(speedups))
    assert speedups.eager_beyond_noise.all()
    assert len(speedups) == 12  # K x batch x operation; none of the decoder


def test_against_eager_says_what_loses(tmp_path):
    device = Device(fake_runs.write(tmp_path, 1, made_up_run()))
    text = tables.verdict(results.against_eager(device))
    assert "faster than eager in 12 and slower in 0" in text
    assert "less memory than eager in 0 of 12, as much, to 1 %, in 0, more in 12" in text


def test_plots_are_the_same_twice_and_need_no_torch(tmp_path):
    folder = tmp_path / "results"
    device = fake_runs.write(folder, 1, made_up_run())
    shown, files = fake_runs.redraw_twice(folder, tmp_path / "twin")
    assert all("4,096 or more" in text for text in shown)
    charts = {p.stem for p in files if p.suffix == ".png"}
    assert charts == {
        "overview",
        "samples-iwae_encoder-float32",
        "samples-iwae_step-float32",
        "samples-share-float32",
        "samples-speedup-float32",
        "samples-largest",
    }
    text = (device / "README.md").read_text()
    assert "## K samples" in text
    assert "| float32 | 64 x 16 | 8 | 88 | 75 | 50 |" in text
    assert "| fused_elbo-chunked | 4,096 or more |" in text


def test_smoke_writes_what_the_charts_read(tmp_path):
    """End to end, without a compiler: the encoder's side, a step and the largest K."""
    selected = "(iwae_step or largest) and (eager or chunked)"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark"]
    command += ["--grid=smoke", f"--results={tmp_path}", "-k", selected]
    done = subprocess.run(command, cwd=fake_runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*/*-*.json")
    infos = [b["extra_info"] for b in json.loads(path.read_text())["benchmarks"]]
    found = {info["provider"]: info for info in infos if info.get("suite") == "largest"}
    assert found["eager"]["ended"] == "memory"
    assert found["eager"]["bytes"] <= found["eager"]["limit"]
    assert found["fused_elbo-chunked"]["ended"] == "not reached"
    assert {info["suite"] for info in infos} == {"samples", "largest"}
    steps = {info["provider"]: info for info in infos if info.get("op") == "iwae_step"}
    assert set(steps) == {"eager", "fused_elbo-chunked"}
    assert all(info["samples"] == 8 and info["peak_bytes"] > 0 for info in steps.values())
    assert runs.measured(tmp_path, json.loads(path.read_text())["commit_info"]["id"]) == {
        "largest-eager",
        "largest-fused_elbo-chunked",
        "iwae_step-eager-K8-64-8-float32-forward+backward",
        "iwae_step-fused_elbo-chunked-K8-64-8-float32-forward+backward",
    }
