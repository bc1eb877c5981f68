"""The gallery: a card and a page for each section of ``examples/README.md``."""

import json
import re

import documents

INDEX = "examples/index.md"
SEE = "What to see:"


def pages(root):
    readme = (root / "examples" / "README.md").read_text(encoding="utf-8")
    intro, *sections = re.split(r"^## ", readme, flags=re.MULTILINE)
    found, cards, names = {}, [], []
    for section in sections:
        heading, _, text = section.partition("\n")
        name = documents.anchor(heading).removesuffix("py")
        program = root / "examples" / f"{name}.py"
        title = title_of(program) if program.exists() else heading
        page = f"# {title}\n{text}"
        if program.exists():
            code = program.read_text(encoding="utf-8")
            page += f"\n## The program\n\n`{heading.strip('`')}`, as it is:\n\n"
            page += f"````python\n{code}````\n"
        place = f"examples/{name}.md"
        found[place] = documents.relinked(root, "examples/README.md", page, place)
        cards.append(documents.card(title, f"/examples/{name}", picture(text), words(text)))
        names.append(name)
    for notebook in sorted((root / "examples").glob("*.ipynb")):
        found[f"examples/{notebook.name}"] = linked_notebook(root, notebook)
        cards.insert(0, notebook_card(notebook))
    listed = "\n".join(names)
    found[INDEX] = documents.relinked(root, "examples/README.md", intro, INDEX)
    found[INDEX] += f"\n{documents.grid(cards)}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    return found


def linked_notebook(root, path):
    """A notebook whose links lead to pages of the site."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            cell["source"] = documents.relinked(root, f"examples/{path.name}", text)
    return json.dumps(notebook)


def notebook_card(path):
    """Its title and its first paragraph."""
    text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    title, first, *_ = text.split("\n\n")
    return documents.card(title.removeprefix("# "), f"/examples/{path.stem}", None, first)


def title_of(program):
    """vae_digits.py as "VAE digits"."""
    words = program.stem.replace("_", " ")
    for short in ("vae", "iwae"):
        words = re.sub(rf"\b{short}\b", short.upper(), words)
    words = words.replace("vamp", "VampPrior:")
    return words[0].upper() + words[1:]


def picture(text):
    found = re.search(r"!\[[^\]]*\]\(([\w.]+)\)", text)
    return found and found[1]


def words(text):
    """The question that a section begins with, and what its picture shows."""
    paragraphs = [" ".join(p.split()) for p in text.strip().split("\n\n")]
    see = [p for p in paragraphs if p.startswith(SEE)]
    first = re.split(r"(?<=[.?!:]) ", paragraphs[0])[0]
    return "\n\n".join([re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", first), *see])
