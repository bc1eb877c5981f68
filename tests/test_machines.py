"""``make test`` on a machine with a GPU: what each pass runs on, with a stand-in for the GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A pytest plugin: there is a CUDA device unless it is hidden, as torch itself decides.
STAND_IN = """
import os
import torch
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
"""


def passes():
    """{marks: variables} of each pytest that ``make test`` and ``make test-gpu`` would run."""
    command = ["make", "--dry-run", "--assume-old=.venv/installed", "test", "test-gpu"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.replace("\\\n", " ").splitlines() if " -m pytest " in line]
    found = {}
    for line in lines:
        before, after = line.split(" -m pytest ", 1)
        marks = re.search(r'-m ("[^"]*"|\S+)', after)[1].strip('"')
        variables = dict(re.findall(r"(\w+)=(\S*)", before))
        found[f"{marks}, {variables.get('TRITON_PTX') or variables['TRITON_INTERPRET']}"] = (
            variables
        )
    return found


def test_the_cpus_passes_hide_the_gpu():
    for name, variables in passes().items():
        assert ("CUDA_VISIBLE_DEVICES" in variables) == (not name.startswith("gpu")), name


def run(tmp_path, *arguments, **variables):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "CUDA_"))}
    environment |= variables | {"PYTHONPATH": str(tmp_path)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "stand_in",
        "-p",
        "no:xdist",
        "--collect-only",
        "-q",
    ]
    result = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return [line for line in result.stdout.splitlines() if "::" in line]


FILES = "tests/ops/test_importance_weights.py", "tests/ops/test_cpu.py"


@pytest.mark.parametrize(
    ("variables", "marks", "kernels", "device"),
    [
        ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}, "not gpu", "numba", "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}, "kernels", "triton", "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "", "TRITON_PTX": "1"}, "kernels", "triton", "cpu"),
        ({"TRITON_INTERPRET": "0"}, "gpu", "triton", "cuda"),
    ],
    ids=["numba", "interpreter", "PTX", "GPU"],
)
def test_what_a_pass_collects(variables, marks, kernels, device, tmp_path):
    """The kernels and the device of every test; numba's own tests where numba runs alone."""
    found = run(tmp_path, "-m", marks, *FILES, **variables)
    weights = [name for name in found if "test_against_the_definition" in name]
    assert weights
    assert all(f"[{device}-" in name for name in weights)
    assert {"numba", "triton"} & {w for name in weights for w in re.split(r"[-\[\]]", name)} == {
        kernels
    }
    assert any("test_cpu.py" in name for name in found) == (kernels == "numba")
