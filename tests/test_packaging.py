"""The wheel and the sdist, as a user gets them: built, installed elsewhere, and put to work."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.machine import KERNELS

ROOT = Path(__file__).resolve().parents[1]
# Left out of the copy: .gitignore's entries, and git itself.
LEFT_OUT = [".git", *(Path(name).name for name in (ROOT / ".gitignore").read_text().split())]
# They run on the reference: compiling every kernel of the doctests anew would take minutes.
DOCTESTS = """
import sys
sys.modules["numba"] = None
import doctest, importlib, pkgutil
import torch
import fused_elbo

names = [m.name for m in pkgutil.walk_packages(fused_elbo.__path__, "fused_elbo.")]
tried = 0
names = [n for n in names if ".kernels" not in n and not n.endswith("warm_up")]  # they need numba
for name in names:
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0, name
    tried += result.attempted
assert tried > 50, tried
"""
STEPS = """
import torch
import fused_elbo
from fused_elbo import elbo_loss, rsample_kl

print(fused_elbo.__file__, fused_elbo.__version__)
encoder, decoder = torch.nn.Linear(64, 2 * 8), torch.nn.Linear(8, 64)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.01)
x, losses = torch.rand(32, 64).round(), []
for _ in range(10):
    z, kl = rsample_kl(*encoder(x).chunk(2, dim=-1), impl=IMPL)
    loss = elbo_loss(decoder(z), x, kl=kl, impl=IMPL)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
"""


def run(*command, cwd, **environment):
    """Its output; no path of this checkout is handed on."""
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, the wheel that was built from it), from a copy of the repository."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist"]
    run(*command, cwd=folder / "copy")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """An environment that has the wheel; torch and the like are this environment's own."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    python = folder / "bin" / "python"
    options = "--no-deps", "--no-index", "--quiet"
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, built[1], cwd=folder)
    return python


def test_wheel_trains_where_it_is_installed(python, tmp_path):
    steps = STEPS.replace("IMPL", repr(KERNELS if KERNELS == "numba" else "auto"))
    place, version = run(python, "-I", "-c", steps, cwd=tmp_path).split()
    assert Path(place).is_relative_to(python.parents[1])
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_wheel_passes_its_doctests(python, tmp_path):
    run(python, "-I", "-c", DOCTESTS, cwd=tmp_path)


def test_wheel_holds_the_package_alone(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fused_elbo"}
    folders = "api", "estimators", "kernels"
    sources = {p.relative_to(ROOT).as_posix() for f in folders for p in (ROOT / f).rglob("*.py")}
    modules = {name.removeprefix("fused_elbo/") for name in names if name.endswith(".py")}
    assert modules == {source.removeprefix("api/") for source in sources}
    assert "fused_elbo/py.typed" in names


def test_citation_has_the_version():
    """CITATION.cff says the version that pyproject.toml says."""
    pyproject, citation = ((ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff"))
    (version,) = re.findall(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [version]


def test_sdist_is_the_repository(built):
    """Every file is in it, so that it can do what a clone can."""
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    copy = built[0].parents[1] / "copy"
    files = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    assert {f for f in files if ".egg-info/" not in f} - names == set()


def test_sdist_runs_its_tests(built, python, tmp_path):
    """Unpacked elsewhere, with what ``make test`` runs: a part of it, for all is there."""
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    run("make", "--dry-run", "test", cwd=folder)
    some = ["tests/test_architecture.py", "tests/estimators/test_schedule.py"]
    output = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some, cwd=folder)
    assert " passed" in output
