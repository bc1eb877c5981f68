"""Every Python block of the README runs, in order, in one namespace; its links exist."""

import re
from pathlib import Path

import pytest

import fused_elbo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_table_names_every_public_operation():
    table = README.split("## The operations")[1].split("## ")[0]
    operations = set(fused_elbo.__all__) - {"ELBOParts", "IWAEParts", "ImportanceWeights"}
    assert operations == set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_exist(target):
    assert (ROOT / target).exists()


def test_shell_commands_name_what_exists():
    """Modules that the README runs are there, and so are the Makefile's targets."""
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    for module in re.findall(r"-m (bench\.\w+)", commands):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", commands, re.MULTILINE):
        assert f"\n{target}:" in makefile
