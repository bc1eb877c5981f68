"""The repository's own Markdown, with links that lead to pages of the site."""

import re
from pathlib import Path

SINGLE = ("CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = "docs/*.md", "results/*/README.md"
FILES = (
    "results/*/plots/*.png",
    "results/*/*.png",
    "results/*/*.csv",
    "examples/*.png",
    "examples/*.ipynb",
)
START = "index.md"  # what the README is here


def pages(root):
    """{path: text, or the file to copy}, all but the README and the examples."""
    found = {}
    for path in [root / name for name in SINGLE] + [p for f in FOLDERS for p in root.glob(f)]:
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root).as_posix()
        found[name] = relinked(root, name, overview_first(text) if "results" in name else text)
    found |= {p.relative_to(root).as_posix(): p for f in FILES for p in root.glob(f)}
    found["results/index.md"] = results(root)
    return found


def overview_first(text):
    """A device's page begins with its picture."""
    picture = "![overview](plots/overview.png)"
    if picture not in text:
        return text
    return text.replace(picture, "").replace("## Result\n", f"{picture}\n\n## Result\n", 1)


def results(root):
    devices = sorted(root.glob("results/*/README.md"))
    cards = []
    for path in devices:
        name = path.parent.name
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        charts = [path.parent / "plots" / "overview.png", *path.parent.glob("*.png")]
        chart = next(c for c in charts if c.exists()).relative_to(root / "results").as_posix()
        cards.append(card(title, f"/results/{name}/README", chart, device_words(name)))
    listed = "\n".join(f"{path.parent.name}/README" for path in devices)
    return (
        "# Results\n\nThe raw JSON of every run is committed. One command redraws these tables and "
        "charts from it. [Benchmarks](../docs/benchmarks.md) says how to measure on your machine, "
        f"and what each figure means.\n\n{grid(cards)}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )


def device_words(name):
    if name == "static":
        return "Registers, instructions and bytes of the compiled kernels. Nothing is timed."
    return "Speed-ups, where fused_elbo loses, memory, and the quality of the estimators."


def grid(cards, columns="1 1 2 2"):
    return f"::::{{grid}} {columns}\n:gutter: 3\n\n" + "\n\n".join(cards) + "\n::::"


def card(title, link, picture, words):
    image = f":img-top: {picture}\n" if picture else ""
    return f":::{{grid-item-card}} {title}\n:link: {link}\n:link-type: doc\n{image}\n{words}\n:::"


def anchor(heading):
    """The end of a link to a heading, on code hosts and here."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def relinked(root, page, text, here=None):
    """Links between documents lead to their pages; those to code and folders are dropped.

    ``page`` is where the text stands in the repository, ``here`` where it stands in the site.
    """
    here = Path(here or page).parent

    def link(match):
        words, target, section = match["words"], match["path"], match["section"] or ""
        if target.startswith(("http:", "https:", "mailto:")) or not target + section:
            return match[0]
        path = (root / page).parent / target if target else root / page
        path = path.resolve()
        if path.is_dir():
            path = path / "README.md"
        if not path.is_relative_to(root) or not (place := placed(root, path, section)):
            return match[0] if match["picture"] else words
        up = Path(*[".."] * len(here.parts))
        name, _, section = place.partition("#")
        return f"{match['picture']}[{words}]({(up / name).as_posix()}{section and '#' + section})"

    pattern = r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<path>[^)#\s]*)(?P<section>#[^)\s]*)?\)"
    return re.sub(pattern, link, text)


def placed(root, path, section):
    """Where a file of the repository is in the site, or None."""
    name = path.relative_to(root).as_posix()
    if name == "README.md":
        return START + section
    if name == "examples/README.md":
        return f"examples/{section[1:].removesuffix('py')}.md" if section else "examples/index.md"
    if name == "results/README.md":
        return "results/index.md"
    known = [*SINGLE, *FOLDERS, *FILES]
    if path.exists() and any(path.relative_to(root).match(p) for p in known):
        return name + section
    return None
