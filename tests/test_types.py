"""The types that users see: mypy reads a training step of theirs, against the installed package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).parents[1]

STEP = """
from typing import assert_type

import torch
from torch import Tensor

import fused_elbo as fe


def step(decoder: torch.nn.Linear, x: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    z, kl = fe.rsample_kl(mu, logvar)
    loss = assert_type(fe.elbo_loss(decoder(z), x, kl=kl), Tensor)
    parts = fe.elbo_loss(decoder(z), x, kl=kl, likelihood="gaussian", return_parts=True)
    assert_type(parts, fe.ELBOParts)
    samples, log_ratio = fe.rsample_log_ratio(mu, logvar, 8, gradient="dreg")
    assert_type(fe.iwae_loss(decoder(samples), x, log_ratio), Tensor)
    assert_type(fe.iwae_loss(decoder(samples), x, log_ratio, return_parts=True), fe.IWAEParts)
    assert_type(fe.chunked_iwae_loss(decoder, x, mu, logvar, 8, chunk_size=2), Tensor)
    assert_type(fe.elbo_tc_loss(decoder(z), x, z, mu, logvar, 100), Tensor)
    assert_type(
        fe.elbo_tc_loss(decoder(z), x, z, mu, logvar, 100, return_parts=True), fe.ELBOTCParts
    )
    assert_type(fe.ELBOLoss().forward(decoder(z), x, kl=kl), Tensor | fe.ELBOParts)
    loss.backward()
    return loss + parts.kl


def wrong(logits: Tensor, x: Tensor, kl: Tensor) -> None:
    fe.elbo_loss(logits, x, kl=kl, likelihood="cauchy")  # wrong
    fe.elbo_loss(logits, x, kl=kl, reduction="avg")  # wrong
    fe.elbo_loss(logits, x, kl=kl).kl  # wrong
"""


def package(folder):
    """The package's tree as it is installed, by links: mypy does not follow editable installs."""
    (folder / "fused_elbo").mkdir()
    for path in [*(ROOT / "api").iterdir(), ROOT / "estimators", ROOT / "kernels"]:
        (folder / "fused_elbo" / path.name).symlink_to(path)
    return folder


def test_a_training_step(tmp_path):
    """Losses are tensors, or named tuples with return_parts; unknown words are errors."""
    (tmp_path / "step.py").write_text(STEP)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "step.py"]
    command += [f"--config-file={ROOT / 'pyproject.toml'}", "--no-incremental"]
    run = subprocess.run(
        command, cwd=package(tmp_path), capture_output=True, text=True, check=False
    )
    found = {int(n) for n in re.findall(r"^step\.py:(\d+): error:", run.stdout, re.MULTILINE)}
    lines = enumerate(STEP.splitlines(), start=1)
    assert found == {n for n, line in lines if "# wrong" in line}, run.stdout + run.stderr
