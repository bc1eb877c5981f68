"""The documents hold: each Python block runs by itself, links and commands name what exists."""

import re
from pathlib import Path

import pytest

import fused_elbo

ROOT = Path(__file__).resolve().parents[1]
NAMES = "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "examples/README.md"
DOCUMENTS = [path for name in NAMES for path in sorted(ROOT.glob(name))]
PLACEHOLDERS = "NAME", "OP", "SUITE"  # of CONTRIBUTING.md, whose own test fills them in
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}


def blocks(text, language):
    """(line, content) of every fenced block."""
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, block.start(1)), block[1]


def anchor(heading):
    """The end of a link to a heading: the-noise-stream for "The noise stream"."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


PYTHON = [
    pytest.param(document, line, block, id=f"{document}:{line + 1}")
    for document, text in TEXTS.items()
    for line, block in blocks(text, "python")
]
LINKS = sorted(
    (document, target)
    for document, text in TEXTS.items()
    for target in set(re.findall(r"\]\((?!https?:)([^)\s]+)\)", text))
)


@pytest.mark.parametrize(("document", "line", "block"), PYTHON)
def test_python_blocks_run(document, line, block):
    """In a namespace of its own; blank lines above it make tracebacks name the document's line."""
    exec(compile("\n" * line + block, document, "exec"), {"__name__": "block"})


@pytest.mark.parametrize("document", TEXTS)
def test_every_block_has_a_language(document):
    """So that none escapes the test above."""
    fences = re.findall(r"^ *```.*$", TEXTS[document], re.MULTILINE)
    opening, closing = fences[::2], fences[1::2]
    assert set(opening) <= {"```python", "```sh", "```text"}
    assert set(closing) <= {"```"}
    assert document != "README.md" or opening.count("```python") >= 3


def test_table_names_every_public_operation():
    table = TEXTS["README.md"].split("## The operations")[1].split("## ")[0]
    tuples = {n for n in fused_elbo.__all__ if hasattr(getattr(fused_elbo, n), "_fields")}
    assert set(fused_elbo.__all__) - tuples == set(re.findall(r"^\| `(\w+)\(", table, re.MULTILINE))


@pytest.mark.parametrize(("document", "target"), LINKS)
def test_links_exist(document, target):
    name, _, section = target.partition("#")
    path = (ROOT / document).parent / name if name else ROOT / document
    assert path.exists()
    if section:
        headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
        assert section in map(anchor, headings)


@pytest.mark.parametrize("document", TEXTS)
def test_commands_name_what_exists(document):
    """Modules and scripts that are run are there, and so are the Makefile's targets."""
    text = TEXTS[document]
    in_blocks = "\n".join(block for _, block in blocks(text, "sh"))
    commands = "\n".join([in_blocks, *re.findall(r"`([^`\n]+)`", text)])
    modules = [ROOT / name.replace(".", "/") for name in re.findall(r"-m (bench[.\w]*)", commands)]
    scripts = [ROOT / name for name in re.findall(r"python (\w[\w/]*\.py)", commands)]
    files = [m / "__main__.py" if m.is_dir() else m.with_suffix(".py") for m in modules] + scripts
    assert [str(f.relative_to(ROOT)) for f in files if not f.exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", commands, re.MULTILINE)
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


@pytest.mark.parametrize("document", TEXTS)
def test_paths_in_code_exist(document):
    """`kernels/ops.py` and the like, from the root."""
    folders = "api|bench|docs|estimators|examples|kernels|results|tests"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", TEXTS[document])
    paths = [path for path in paths if not any(word in path for word in PLACEHOLDERS)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
