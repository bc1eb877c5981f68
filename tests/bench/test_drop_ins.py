"""The benchmarks of the drop-ins: their oracle's veto, sweep, floors, table and chart."""

import re
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import plot, suites, table
from bench.drop_ins import tables
from bench.drop_ins.cases import case_of as drop_in_case
from bench.drop_ins.cases import sweep
from bench.drop_ins.entries import ENTRIES
from bench.drop_ins.tcvae import BETA, EXAMPLES
from bench.drop_ins.vae import BOLTS_WEIGHT, M_N, SCVI_WEIGHT
from bench.harness import measure, oracle
from bench.harness.cases import BOTH, GRIDS, HIDDEN, case_id
from bench.harness.operation import TOLERANCE, make_inputs
from bench.harness.providers import COMPILED
from bench.operations.entries import eager_kl as kl
from bench.reporting.formats import DASH, TIMES
from bench.reporting.results import Device
from bench.samples.entries import DECODER
from fused_elbo import kl_decomposition
from helpers import fake_runs

MIX_LOGISTIC = "vdvae_discretized_mix_logistic_loss"
ORIGINALS = {op: operation.providers["eager"] for op, operation in ENTRIES.items()}


OF_COUNTS = ["scvi_log_nb_positive", "scvi_log_zinb_positive"]
OF_PAIRS = ["rtqichen_tcvae_elbo", "pythae_beta_tcvae_loss", "pythae_vamp_loss"]


def case_of(op, provider="eager", batch=64, dtype="float32"):
    return drop_in_case(op, provider, batch, dtype)


def names(op, device="cpu"):
    if ENTRIES[op].needs:
        pytest.importorskip(ENTRIES[op].needs)
    return ENTRIES[op].provider_names(device)


@pytest.mark.parametrize(
    ("op", "dtype"), [(op, dtype) for op in ENTRIES for dtype in ENTRIES[op].dtypes]
)
def test_oracle_accepts_original_and_drop_in(op, dtype):
    for provider in names(op):
        if provider == "compile":
            continue
        prepared = measure.Prepared(ENTRIES[op], case_of(op, provider, dtype=dtype), "cpu")
        usual = 1e-6 if dtype == "float32" else TOLERANCE[dtype]
        if dtype == "float32" and op in OF_PAIRS:
            usual = 5e-6  # of logarithms of sums of densities
        assert prepared.error < (ENTRIES[op].tolerance[dtype] if op == MIX_LOGISTIC else usual)
        needed = ENTRIES[op].floor(prepared.case)
        assert measure.bandwidth(needed, prepared.seconds, 1e9)["floor_bytes"] > 0


def test_dtypes():
    """bfloat16 has no probabilities near 1, no 256 levels; Pyro sums in it, and those of pairs."""
    only = {op for op, operation in ENTRIES.items() if operation.dtypes != BOTH}
    assert only == {"pytorch_examples_vae_loss", "pyro_step", MIX_LOGISTIC, *OF_PAIRS, *OF_COUNTS}


def beta_doubled(op, weight):
    """The original, and its KL once more; ``weight`` of the KL of an example."""

    def function(recon, x, mu, logvar):
        return ORIGINALS[op](recon, x, mu, logvar) + weight * kl(mu, logvar).sum()

    return function


def scaled(op, factor):
    return lambda *inputs: factor * ORIGINALS[op](*inputs)


def summed_pixels(recon, x, mu, logvar):
    squares = F.mse_loss(recon, x, reduction="sum")
    return squares + M_N * kl(mu, logvar).mean()


def summed_latents(recon, x, mu, logvar):
    return F.mse_loss(recon, x) + BOLTS_WEIGHT * kl(mu, logvar).mean()


def prior_of_the_wrong_variance(mean, variance):
    return SCVI_WEIGHT * kl(mean, 2 * variance.log())


def another_epsilon(mu, theta, x):
    return ORIGINALS["scvi_log_nb_positive"](mu + 1e-2, theta, x)


def never_zero_by_itself(mu, theta, pi, x):
    return ORIGINALS["scvi_log_nb_positive"](mu, theta, x) + 0 * pi.sum()


def frozen_variance(recon, x, variance):
    return F.gaussian_nll_loss(recon, x, variance.detach()) + 0 * variance.sum()


def diagonal_weights(recon, x, mu, log_var, z):
    """pythae's loss with the weights where they should be."""
    terms = kl_decomposition(z, mu, log_var, EXAMPLES)
    kld = terms.mutual_information + BETA * terms.total_correlation + terms.dimension_wise
    return (F.mse_loss(recon, x, reduction="none").sum(-1) / 2 + kld).mean()


def one_component(*inputs):
    *given, prior_mu, prior_log_var = inputs
    return ORIGINALS["pythae_vamp_loss"](*given, prior_mu[:1], prior_log_var[:1])


def doubled_kl_of_parameters(parameters):
    z, total = ORIGINALS["DiagonalGaussianDistribution"](parameters)
    return z, total + kl(*parameters.chunk(2, 1)).sum()


def log_variance_of_the_prior(mu, log_std, prior_mu, prior_log_std):
    return ORIGINALS["rsample_kl_log_std"](mu, log_std, prior_mu, prior_log_std / 2)


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
        (MIX_LOGISTIC, scaled(MIX_LOGISTIC, 1.001)),
        ("gaussian_nll_loss", lambda *inputs: F.gaussian_nll_loss(*inputs, reduction="sum")),
        ("gaussian_nll_loss", lambda *inputs: F.gaussian_nll_loss(*inputs, full=True)),
        ("gaussian_nll_loss", frozen_variance),
        ("scvi_log_nb_positive", another_epsilon),
        ("scvi_log_zinb_positive", never_zero_by_itself),
        (
            "rtqichen_tcvae_elbo",
            lambda *t: ORIGINALS["rtqichen_tcvae_elbo"](*t[:4], t[4].detach()) + 0 * t[4].sum(),
        ),
        ("pythae_beta_tcvae_loss", diagonal_weights),
        ("pythae_vamp_loss", one_component),
        ("DiagonalGaussianDistribution", doubled_kl_of_parameters),
        ("gaussian_analytical_kl", scaled("gaussian_analytical_kl", 2.0)),
        ("rsample_kl_log_std", log_variance_of_the_prior),
        ("pyro_step", pyro_beta_doubled),
        ("pyro_step", pyro_mean),
    ],
)
def test_oracle_finds(op, function):
    names(op)
    with pytest.raises(oracle.WrongResultError, match=r"output|gradient"):
        measure.Prepared(ENTRIES[op], case_of(op), "cpu", function)


@pytest.mark.parametrize("op", ENTRIES)
def test_oracle_sees_every_gradient(op):
    """An input whose gradient is lost, whatever its weight in the value."""
    names(op)
    case = case_of(op)
    for i, name in enumerate(ENTRIES[op].inputs):
        if name not in ENTRIES[op].gradients:
            continue

        def function(*inputs, i=i):
            cut = [t.detach() if j == i else t for j, t in enumerate(inputs)]
            *shown, loss = oracle.as_tuple(ORIGINALS[op](*cut))
            return (*shown, loss + 0 * inputs[i].sum())

        with pytest.raises(oracle.WrongResultError, match=f"gradient of {name}"):
            measure.Prepared(ENTRIES[op], case, "cpu", function)


@pytest.mark.parametrize("op", [op for op in ENTRIES if ENTRIES[op].compiles])
def test_originals_compile(op):
    """All compile in one graph, except the one that says so. Without a backend this is quick."""
    torch._dynamo.reset()
    inputs = make_inputs(ENTRIES[op], case_of(op, batch=4), "cpu", 0)
    whole = op != "gaussian_nll_loss"
    assert whole == ENTRIES[op].fullgraph
    torch.manual_seed(0)
    # Before: which KL two distributions have torch looks up once, and its compiler cannot look.
    expected = ORIGINALS[op](*inputs)
    function = torch.compile(ORIGINALS[op], backend="eager", fullgraph=whole)
    torch.manual_seed(0)
    torch.testing.assert_close(function(*inputs), expected)
    if not whole:
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"data-dependent|Data.dependent"):
            torch.compile(ORIGINALS[op], backend="eager", fullgraph=True)(*inputs)


@pytest.mark.parametrize("where", GRIDS)
def test_sweep(where):
    swept = sweep(ENTRIES, where[0], GRIDS[where])
    assert len(set(map(case_id, swept))) == len(swept)
    left_out = {op for op in ENTRIES if GRIDS[where].brief and ENTRIES[op].full_only}
    assert {c.op for c in swept} - {"pyro_step"} == set(ENTRIES) - {"pyro_step"} - left_out
    assert all(c.backward for c in swept)
    for case in swept:
        assert case.dtype in ENTRIES[case.op].dtypes
        assert case.batch <= ENTRIES[case.op].most


def test_default_batches():
    def batches(device, op, grid="full"):
        names(op)
        swept = sweep(ENTRIES, device, GRIDS[device, grid])
        return sorted({c.batch for c in swept if c.op == op})

    assert batches("cpu", "pythae_vae_loss") == [64, 512, 4096]
    assert batches("cpu", "pyro_step") == [64, 512]
    assert batches("cpu", "pythae_vae_loss", "default") == [512]
    assert batches("cuda", "pythae_vae_loss", "default") == [64, 1024, 16384]
    assert batches("cuda", "pyro_step", "default") == [64, 1024]


def test_every_provider_competes():
    assert names("bolts_vae_loss", "cpu") == ["eager", "compile", "fused_elbo"]
    on_gpu = ["eager", *COMPILED, "fused_elbo"]
    assert names("gaussian_nll_loss", "cuda") == on_gpu
    assert names("pyro_step") == ["eager", "fused_elbo"]


def test_without_pyro(monkeypatch):
    """Its step is not swept then; None in sys.modules would make an import an error."""
    monkeypatch.setitem(sys.modules, "pyro", None)
    assert ENTRIES["pyro_step"].provider_names("cpu") == []


@pytest.mark.parametrize("op", ENTRIES)
def test_floor_is_the_size_of_the_tensors(op):
    """Each tensor read once and its gradient written; mu and logvar read once more for backward."""
    case = case_of(op, batch=6)
    inputs = dict(zip(ENTRIES[op].inputs, make_inputs(ENTRIES[op], case, "cpu", 0), strict=True))
    floor = ENTRIES[op].floor(case)
    size = sum(t.nbytes * (1 + t.requires_grad) for t in inputs.values())
    latents = 4 * 6 * case.latent
    if op == "scvi_kl_local":
        size += 2 * latents + 2 * 4 * 6  # the KL of an example and its gradient
    elif op in OF_COUNTS:
        size += sum(t.nbytes for t in inputs.values()) + 2 * 4 * 6  # all read again; a cell's
    elif op == "DiagonalGaussianDistribution":
        size += 3 * latents  # both halves read again, z written
    elif op in ("rsample_kl_log_std", "gaussian_analytical_kl"):
        size += 5 * latents  # all four read again, z or the KL of latents written
    elif op == "pyro_step":
        weights = sum(inputs[name].nbytes for name in DECODER)
        logits = inputs["pixels"].nbytes
        # z written and read, its gradient too, and z once more; logits and their gradient are
        # written by the one and read by the other.
        size += 2 * latents + weights + 5 * latents + 4 * logits
    elif op not in ("gaussian_nll_loss", MIX_LOGISTIC):
        size += 2 * latents
    if op in OF_PAIRS:
        size += latents  # z again, and below an example's number, and the components
        size += {OF_PAIRS[0]: 2 * 4 * 6, OF_PAIRS[2]: 2 * 4 * HIDDEN * case.latent}.get(op, 0)
    assert floor == size


SECONDS = {"eager": 4e-6, "compile": 1e-6, "compile-max": 2e-6, "fused_elbo": 2e-6}


def made_up_run():
    rows = [
        fake_runs.row(
            case_of(op, name, batch, dtype), fake_runs.times((1 + i) * batch * seconds, 0.01),
            clock="device", peak_bytes=8, floor_bytes=12 * batch,
        )
        for i, op in enumerate(ENTRIES)
        for batch in (64, 1024)
        for dtype in ("float32", "bfloat16")
        for name, seconds in SECONDS.items()
        if name in ENTRIES[op].provider_names("cuda")
    ]  # fmt: skip
    return fake_runs.run(1, rows, "cuda")


def plain(path):
    """A text without the characters that look like others."""
    return path.read_text().replace(TIMES, "x").replace(DASH, "-")


def test_table_and_chart(tmp_path, monkeypatch, capsys):
    device = fake_runs.write(tmp_path / "results", 1, made_up_run())
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "drop-ins.md"
    page.parent.mkdir()
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    page.write_text("<!-- drop-ins:begin -->\n<!-- drop-ins:end -->\n")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    folder = ["--results", str(device.parent)]
    plot.main([*folder, "--pages"])
    charts = {p.stem for p in (device / "plots").glob("*.png")}
    assert charts == {"drop-ins-float32", "drop-ins-bfloat16"}
    text = plain(device / "README.md")
    assert "## Drop-ins" in text
    assert "| `pythae_vae_loss` | bfloat16 | 64 | 512 µs | 128 µs | 256 µs | 2.00x | 0.50x" in text
    if ENTRIES["pyro_step"].provider_names("cpu"):
        assert re.search(
            r"\| `pyro_step` \| float32 \| 64 \| \S+ ms \| - \| \S+ ms \| 2.00x \| - \|", text
        )
        assert f"faster than its original in {4 * len(ENTRIES)} and slower in 0" in text
    short = plain(page)
    header = "[Made Up](../results/made-up/README.md), Triton's kernels, device clock"
    assert f"| forward + backward | {header} |" in short
    assert "| `scvi_kl_local`, bfloat16 | 2.00x / 0.50x |" in short
    assert "over eager PyTorch" not in plain(readme)
    capsys.readouterr()
    table.main(folder)
    assert "drop-ins: forward+backward, bfloat16" in capsys.readouterr().out


def test_results_without_drop_ins(tmp_path):
    run = fake_runs.of_operations(1, {"eager": 4e-6, "fused_elbo": 2e-6})
    device = Device(fake_runs.write(tmp_path / "results", 1, run))
    assert tables.sections(device) == []
    assert tables.project([device], "[{}]".format) == []
    _, shown = suites.PAGES["results"]([device], "[{}]".format)
    assert [row[0] for row in shown.rows] == ["`gaussian_kl`", "`elbo_step`"]
