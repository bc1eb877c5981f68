"""The front page with a GPU's results: a made-up one, beside a made-up CPU."""

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import plot
from bench.harness import clock, machine
from bench.reporting.formats import WAITS
from bench.reporting.results import Device, waiting
from bench.samples import largest
from helpers import fake_runs

PAGE = """# A project

- **Honest.** It is. <!-- measured:begin -->old<!-- measured:end --> The rest.

<!-- results:begin -->
<!-- results:end -->

<!-- overview:begin -->
old
<!-- overview:end -->
"""
SECONDS = {"eager": 4e-6, "builtin": 1.5e-6, "fused_elbo": 1e-6}


def gpu_run():
    """Two operations on a GPU, in two dtypes; its builtin calls wait, and the host is slow."""
    output = fake_runs.of_operations(1, SECONDS)
    info = output["machine_info"]
    info |= {"device_name": "NVIDIA Made Up", "gpu": {"name": "NVIDIA Made Up"}}
    output["load"] = [{"clocks.sm": "1980 MHz", "reasons": "0x4"}, {"clocks.sm": "1500 MHz"}]
    for benchmark in output["benchmarks"]:
        of = benchmark["extra_info"]
        of["host_waits"] = of["provider"] == "builtin"
        of["host"]["median"] = 50e-6 * (2 if of["provider"] == "fused_elbo" else 1)
        if of["op"] == "elbo_step":
            of["dtype"] = "float16"
    return output


def cpu_run():
    output = fake_runs.of_operations(2, SECONDS)
    output["machine_info"] |= {"device": "cpu", "gpu": None, "numba": "0", "device_name": "A CPU"}
    for benchmark in output["benchmarks"]:
        of = benchmark["extra_info"]
        del of["host"], of["graph"]
        of["clock"] = "host"
    return output


def written(root, *names_and_runs):
    """A project with these results, drawn; its front page."""
    results = root / "results"
    for name, output in names_and_runs:
        fake_runs.write(root / "made", 1, output).rename(results / name)
    (root / "README.md").write_text(PAGE)
    plot.main(["--results", str(results), "--pages"])
    return (root / "README.md").read_text()


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def test_with_a_cpu_alone(root):
    text = written(root, ("cpu-made-up", cpu_run()))
    assert "It is. No GPU has been measured. The rest." in strip(text)
    assert (
        "| forward + backward | [A CPU](results/cpu-made-up/README.md), numba's kernels, wall"
        in text
    )
    assert "(results/cpu-made-up/plots/overview.png)" in text


def strip(text):
    return text.replace("<!-- measured:begin -->", "").replace("<!-- measured:end -->", "")


def test_with_a_gpu(root):
    """No sentence says that there is none, the chart is the GPU's, and both clocks are there."""
    text = written(root, ("cpu-made-up", cpu_run()), ("gpu", gpu_run()))
    link = "[NVIDIA Made Up](results/gpu/README.md)"
    assert f"It is. Triton's kernels were measured on {link}. The rest." in strip(text)
    header, _, kl, half_step, _ = [line for line in text.splitlines() if line.startswith("|")]
    assert header.split(" | ")[1:] == [
        f"{link}, Triton's kernels, device clock",
        f"{link}, Triton's kernels, wall clock",
        "[A CPU](results/cpu-made-up/README.md), numba's kernels, wall clock |",
    ]
    # It is faster on the device, and half as fast by the wall clock.
    assert kl.split(" | ")[1:3] == ["4.00\u00d7 / 1.50\u00d7", "0.50\u00d7 / 0.50\u00d7"]
    assert half_step.split(" | ")[1:3] == kl.split(" | ")[1:3]
    assert half_step.startswith("| `elbo_step`, float16 |")
    assert "(results/gpu/plots/overview.png)" in text
    assert "cpu-made-up/plots" not in text
    assert "old" not in text


def test_a_gpu_readme_marks_waits_and_names_clocks_at_work(root):
    written(root, ("gpu", gpu_run()))
    text = (root / "results" / "gpu" / "README.md").read_text()
    device = Device(root / "results" / "gpu")
    assert waiting(device.right) == {"builtin"}
    assert set(device.speedups.rival) == {f"builtin{WAITS}"}
    assert "| at work, first | clocks.sm 1980 MHz, reasons 0x4 |" in text
    assert f"waits for the device (marked {WAITS})" in text
    assert "No GPU here" not in text
    assert (root / "results" / "gpu" / "plots" / "time-elbo_step-float16.png").exists()


def test_nothing_made_up_is_committed():
    names = [path.name for path in (fake_runs.ROOT / "results").iterdir()]
    assert not [name for name in names if "made" in name or name == "gpu"]


class Properties:
    uuid = "8d2a3c1e-aaaa-bbbb-cccc-0123456789ab"
    L2_cache_size = 126 * 2**20
    total_memory = 4 * 2**30


@pytest.fixture
def smi(monkeypatch):
    """nvidia-smi of a machine with a driver of words of its own; the commands that it got."""
    asked = []

    def run(*command):
        asked.append(command)
        fields = command[1].removeprefix("--query-gpu=").split(",")
        if "clocks_event_reasons.active" in fields:
            return ""
        return ", ".join(f"<{field}>" for field in fields)

    monkeypatch.setattr(machine, "run", run)
    monkeypatch.setattr(machine.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(machine.torch.cuda, "get_device_properties", lambda _: Properties)
    return asked


def test_the_gpu_is_asked_by_its_uuid(smi):
    found = machine.asked(machine.NVIDIA_FIELDS)
    assert found["driver_version"] == "<driver_version>"
    assert f"--id=GPU-{Properties.uuid}" in smi[0]


def test_clocks_at_work_are_known_to_old_drivers_too(smi):
    assert machine.load() == {
        **{field: f"<{field}>" for field in machine.LOAD_FIELDS},
        "reasons": "<clocks_throttle_reasons.active>",
    }


@pytest.mark.parametrize(
    ("reasons", "held"),
    [
        ("0x0000000000000000", False),
        ("0x1", False),
        ("0x4", True),
        ("0x41", True),
        ("[N/A]", False),
    ],
)
def test_clocks_that_are_held_back(reasons, held):
    """Idle is no reason to doubt; a cap on power (0x4) and heat (0x40) are."""
    assert machine.held_back({"reasons": reasons}) == held


def test_a_gpu_that_torch_cannot_use_is_said(smi, monkeypatch):
    monkeypatch.setattr(machine, "DEVICE", "cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "There is an NVIDIA GPU (driver <driver_version>)" in machine.why_no_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.why_no_gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "DEVICE", "cuda")
    assert machine.why_no_gpu() is None


def test_sizes_are_those_of_the_gpu(smi):
    """A large L2 takes more inputs to leave; a small card is not filled by a copy."""
    assert clock.cache_bytes("cuda") == Properties.L2_cache_size
    assert clock.input_sets("cuda", 30 * 2**20) == 13
    assert clock.copy_bytes("cuda") == 2**29


@pytest.mark.parametrize(
    ("message", "is_it"),
    [
        ("Triton Error [CUDA]: out of memory", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_every_library_may_run_out_of_memory(message, is_it):
    assert largest.out_of_memory(RuntimeError(message)) == is_it
