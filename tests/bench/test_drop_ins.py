"""The benchmarks of the drop-ins: their oracle's veto, sweep, floors, table and chart."""

import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

import made_up

from bench import (
    cases,
    drop_ins,
    drop_ins_report,
    measure,
    oracle,
    plot,
    providers,
    report,
    results,
    table,
    traffic,
)

BOTH = "forward+backward"
ORIGINALS = drop_ins.ORIGINALS


def case_of(op, provider="eager", batch=64, dtype="float32"):
    return cases.Case(op, provider, batch, cases.DROP_IN_LATENTS, dtype, BOTH)


def names(op, device="cpu"):
    if op == drop_ins.PYRO:
        pytest.importorskip("pyro")
    return providers.names(op, device)


@pytest.mark.parametrize(
    ("op", "dtype"),
    [(op, "float32") for op in cases.DROP_INS]
    + [(op, "bfloat16") for op in cases.DROP_INS if op not in cases.DROP_INS_IN_FLOAT32],
)
def test_oracle_accepts_original_and_drop_in(op, dtype):
    for provider in names(op):
        if provider == "compile":
            continue
        prepared = measure.Prepared(case_of(op, provider, dtype=dtype), "cpu")
        assert prepared.error < (1e-6 if dtype == "float32" else oracle.TOLERANCE[dtype])
        assert measure.bandwidth(prepared.case, prepared.seconds, 1e9)["floor_bytes"] > 0


def kl(mu, logvar):
    return providers.eager_gaussian_kl(mu, logvar)


def beta_doubled(op, weight):
    """The original, and its KL once more; ``weight`` of the KL of an example."""

    def function(recon, x, mu, logvar):
        return ORIGINALS[op](recon, x, mu, logvar) + weight * kl(mu, logvar).sum()

    return function


def scaled(op, factor):
    return lambda *inputs: factor * ORIGINALS[op](*inputs)


def summed_pixels(recon, x, mu, logvar):
    squares = F.mse_loss(recon, x, reduction="sum")
    return squares + cases.ANTIXK_WEIGHT * kl(mu, logvar).mean()


def summed_latents(recon, x, mu, logvar):
    return F.mse_loss(recon, x) + cases.BOLTS_WEIGHT * kl(mu, logvar).mean()


def prior_of_the_wrong_variance(mean, variance):
    return cases.SCVI_WEIGHT * kl(mean, 2 * variance.log())


def frozen_variance(recon, x, variance):
    return F.gaussian_nll_loss(recon, x, variance.detach()) + 0 * variance.sum()


def pyro_beta_doubled(mu, logvar, *rest):
    z, loss = ORIGINALS["pyro_step"](mu, logvar, *rest)
    return z, loss + kl(mu, logvar).sum()


def pyro_mean(*inputs):
    z, loss = ORIGINALS["pyro_step"](*inputs)
    return z, loss / len(z)


@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("pytorch_examples_vae_loss", beta_doubled("pytorch_examples_vae_loss", 1.0)),
        ("pytorch_examples_vae_loss", scaled("pytorch_examples_vae_loss", 1 / 64)),
        ("pythae_vae_loss", beta_doubled("pythae_vae_loss", 1 / 64)),
        ("pythae_vae_loss", scaled("pythae_vae_loss", 64)),
        ("antixk_vanilla_vae_loss", beta_doubled("antixk_vanilla_vae_loss", 0.00025 / 64)),
        ("antixk_vanilla_vae_loss", summed_pixels),
        ("bolts_vae_loss", beta_doubled("bolts_vae_loss", 0.1 / 64 / 32)),
        ("bolts_vae_loss", summed_latents),
        ("scvi_kl_local", scaled("scvi_kl_local", 2.0)),
        ("scvi_kl_local", prior_of_the_wrong_variance),
        ("gaussian_nll_loss", lambda *inputs: F.gaussian_nll_loss(*inputs, reduction="sum")),
        ("gaussian_nll_loss", lambda *inputs: F.gaussian_nll_loss(*inputs, full=True)),
        ("gaussian_nll_loss", frozen_variance),
        ("pyro_step", pyro_beta_doubled),
        ("pyro_step", pyro_mean),
    ],
)
def test_oracle_finds(op, function):
    names(op)
    with pytest.raises(oracle.WrongResultError, match=r"output|gradient"):
        measure.Prepared(case_of(op), "cpu", function)


@pytest.mark.parametrize("op", cases.DROP_INS)
def test_oracle_sees_every_gradient(op):
    """An input whose gradient is lost, whatever its weight in the value."""
    names(op)
    case = case_of(op)
    for i, name in enumerate(cases.DROP_INS[op].inputs):
        if name not in cases.DROP_INS[op].gradients:
            continue

        def function(*inputs, i=i):
            cut = [t.detach() if j == i else t for j, t in enumerate(inputs)]
            *shown, loss = oracle.as_tuple(ORIGINALS[op](*cut))
            return (*shown, loss + 0 * inputs[i].sum())

        with pytest.raises(oracle.WrongResultError, match=f"gradient of {name}"):
            measure.Prepared(case, "cpu", function)


@pytest.mark.parametrize("op", [op for op in cases.DROP_INS if op != drop_ins.PYRO])
def test_originals_compile(op):
    """In one graph, but for the one of which that is known; without a backend it is quick."""
    torch._dynamo.reset()
    inputs = cases.make_inputs(case_of(op, batch=4), "cpu", 0)
    whole = op != drop_ins.GRAPH_BREAK
    function = torch.compile(ORIGINALS[op], backend="eager", fullgraph=whole)
    torch.testing.assert_close(function(*inputs), ORIGINALS[op](*inputs))
    if not whole:
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"data-dependent|Data.dependent"):
            torch.compile(ORIGINALS[op], backend="eager", fullgraph=True)(*inputs)


@pytest.mark.parametrize("where", cases.GRIDS)
def test_sweep(where):
    swept = cases.drop_in_sweep(cases.GRIDS[where], lambda op: ["eager"])
    assert len(set(map(cases.case_id, swept))) == len(swept)
    assert {c.op for c in swept} - {"pyro_step"} == set(cases.DROP_INS) - {"pyro_step"}
    assert all(cases.case_id(c).startswith("drop_in-") and c.backward for c in swept)
    for case in swept:
        assert case.dtype == "float32" or case.op not in cases.DROP_INS_IN_FLOAT32
        assert case.batch <= cases.PYRO_MOST or case.op != "pyro_step"


def test_default_batches():
    def batches(device, op):
        swept = cases.drop_in_sweep(cases.GRIDS[device, "default"], lambda op: ["eager"])
        return sorted({c.batch for c in swept if c.op == op})

    assert batches("cpu", "pythae_vae_loss") == [64, 512, 4096]
    assert batches("cpu", "pyro_step") == [64, 512]
    assert batches("cuda", "pythae_vae_loss") == [64, 1024, 16384]
    assert batches("cuda", "pyro_step") == [64, 1024]


def test_every_provider_competes():
    assert providers.names("bolts_vae_loss", "cpu") == ["eager", "compile", "fused_elbo"]
    on_gpu = ["eager", *providers.COMPILE_MODES, "fused_elbo"]
    assert providers.names("gaussian_nll_loss", "cuda") == on_gpu
    assert names("pyro_step") == ["eager", "fused_elbo"]


def test_without_pyro(monkeypatch):
    """Its step is not swept then; None in sys.modules would make an import an error."""
    monkeypatch.setitem(sys.modules, "pyro", None)
    assert providers.names("pyro_step", "cpu") == []


@pytest.mark.parametrize("op", cases.DROP_INS)
def test_floor_is_the_size_of_the_tensors(op):
    """Each tensor read once and its gradient written; mu and logvar read once more for backward."""
    case = case_of(op, batch=6)
    inputs = dict(zip(cases.DROP_INS[op].inputs, cases.make_inputs(case, "cpu", 0), strict=True))
    floor = traffic.drop_in_floor_bytes(op, 6, case.latent, "float32")
    size = sum(t.nbytes * (1 + t.requires_grad) for t in inputs.values())
    latents = 4 * 6 * case.latent
    if op == "scvi_kl_local":
        size += 2 * latents + 2 * 4 * 6  # the KL of an example and its gradient
    elif op == "pyro_step":
        weights = sum(inputs[name].nbytes for name in cases.DECODER)
        logits = inputs["pixels"].nbytes
        # z written and read, its gradient too, and z once more; logits and their gradient are
        # written by the one and read by the other.
        size += 2 * latents + weights + 5 * latents + 4 * logits
    elif op != "gaussian_nll_loss":
        size += 2 * latents
    assert floor == size


def entry(op, provider, batch, dtype, seconds):
    stats = {"median": seconds, "q1": 0.99 * seconds, "q3": 1.01 * seconds, "rounds": 9}
    info = case_of(op, provider, batch, dtype)._asdict()
    info |= {"status": "right", "error": 1e-7, "compile_seconds": 0.0, "clock": "device"}
    return {"extra_info": {**info, "peak_bytes": 8, "floor_bytes": 12 * batch}, "stats": stats}


SECONDS = {"eager": 4e-6, "compile": 1e-6, "compile-max": 2e-6, "fused_elbo": 2e-6}


def made_up_run(ops=cases.DROP_INS):
    benchmarks = [
        entry(op, name, batch, dtype, (1 + i) * batch * seconds)
        for i, op in enumerate(ops)
        for batch in (64, 1024)
        for dtype in ("float32", "bfloat16")
        for name, seconds in SECONDS.items()
        if name in providers.names(op, "cuda")
    ]
    return made_up.run(1, benchmarks, "cuda")


def plain(path):
    """A text without the characters that look like others."""
    return path.read_text().replace(report.TIMES, "x").replace(report.DASH, "-")


def test_table_and_chart(tmp_path, monkeypatch, capsys):
    device = made_up.write(tmp_path / "results", 1, made_up_run())
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    folder = ["--results", str(device.parent)]
    plot.main(folder)
    charts = {p.stem for p in (device / "plots").glob("*.png")}
    assert charts == {"drop-ins-float32", "drop-ins-bfloat16"}
    text = plain(device / "README.md")
    assert "## Drop-ins" in text
    assert "| `pythae_vae_loss` | bfloat16 | 64 | 512 µs | 128 µs | 256 µs | 2.00x | 0.50x" in text
    if drop_ins.has_pyro():
        assert "| `pyro_step` | float32 | 64 | 1.79 ms | - | 896 µs | 2.00x | - |" in text
        assert "faster than its original in 28 and slower in 0" in text
    short = plain(readme)
    assert "| forward + backward | [Made Up](results/made-up/README.md), float32 |" in short
    assert "| `scvi_kl_local` | 2.00x / 0.50x | 2.00x / 0.50x |" in short
    assert "over eager PyTorch" not in short
    capsys.readouterr()
    table.main(folder)
    assert "drop-ins: forward+backward, bfloat16" in capsys.readouterr().out


def test_results_without_drop_ins(tmp_path):
    device = made_up.write(tmp_path / "results", 1, made_up_run(["gaussian_kl"]))
    data = results.load(device)
    assert drop_ins_report.sections(results.newest(data), results.speedups(data), "device") == []
    text = report.project_table(device.parent)
    assert "`gaussian_kl`" in text
    assert "drop-ins" not in text
