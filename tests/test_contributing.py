"""CONTRIBUTING.md against the tree: its recipes name the files that they are about."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
# For each recipe: the placeholder of the name, an example from the tree, and another word for it.
RECIPES = {
    "Add a likelihood": ("NAME", "poisson", "poisson_nll"),
    "Add an op": ("OP", "importance_weights", "importance_weights"),
    "Add a benchmark suite": ("SUITE", "mixtures", "mixtures"),
}
# Files of the product that name a likelihood or an op, but are not about it.
OTHERS = {
    "poisson": {"bench/single_cell/models.py", "estimators/counts.py"},
    "importance_weights": {
        "bench/static/tables.py",
        "estimators/bounds.py",
        "estimators/compat/pythae.py",
    },
}
FOLDERS = "api", "bench", "docs/site", "estimators", "kernels"


def recipe(heading):
    return TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def files(heading):
    """The files that the steps of a recipe name, with the example's name filled in."""
    found = re.findall(r"`([\w./]+/?[\w.]+\.(?:py|md|toml))`", recipe(heading))
    placeholder, example, _ = RECIPES.get(heading, ("BACKEND", "numba", ""))
    return {re.sub(rf"(?<![A-Z]){placeholder}(?![A-Z])", example, name) for name in found}


@pytest.mark.parametrize("heading", [*RECIPES, "Add a backend"])
def test_recipes_are_numbered_and_name_what_exists(heading):
    steps = re.findall(r"^(\d+)\. ", recipe(heading), re.MULTILINE)
    assert steps == [str(i + 1) for i in range(len(steps))]
    assert len(steps) > 4
    assert [name for name in files(heading) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("heading", RECIPES)
def test_files_of_a_recipe_name_its_example(heading):
    """A file that does not name it is one that nobody has to touch."""
    words = re.compile(rf"\b({'|'.join(RECIPES[heading][1:])})\b")
    named = {n for n in files(heading) if words.search((ROOT / n).read_text()) or words.search(n)}
    linked = {"docs/kernels.md"}
    assert files(heading) - named - linked == set()


@pytest.mark.parametrize("heading", ["Add a likelihood", "Add an op"])
def test_recipes_miss_no_file_of_the_product(heading):
    words = re.compile(rf"(?<!torch\.)\b({'|'.join(RECIPES[heading][1:])})\b")
    tree = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    about = {p.relative_to(ROOT).as_posix() for p in tree if words.search(p.read_text())}
    missing = about - files(heading) - OTHERS.get(RECIPES[heading][1], set())
    assert {name for name in missing if "_build" not in name} == set()


def test_no_docstring_or_comment_begins_with_a_loose_word():
    begins = re.compile(r'^\s*r?("""|#)\s*(Of|And|Which|By|What|Those) ', re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
        for folder in (*FOLDERS, "examples", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for text in [path.read_text()]
        for match in begins.finditer(text)
    ]
    assert found == []
