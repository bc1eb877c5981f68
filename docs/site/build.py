"""``make docs``: the site, from the repository's documents, docstrings and results.

    python docs/site/build.py [--out docs/_build]

Lays the pages out in ``OUT/source`` and has Sphinx write ``OUT/html``. Any warning is an error.
"""

import argparse
import shutil
import sys
from pathlib import Path

import documents
import estimators_table
import reference
import start
from sphinx.cmd.build import main as sphinx

import examples

SITE = Path(__file__).resolve().parent
ROOT = SITE.parents[1]


def lay_out(source):
    """All pages, as Sphinx reads them."""
    pages = {
        **documents.pages(ROOT),
        **examples.pages(ROOT),
        **reference.pages(),
        **estimators_table.pages(ROOT),
        **start.pages(ROOT),
    }
    shutil.rmtree(source, ignore_errors=True)
    for path, text in pages.items():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, Path):  # a file, as it is
            shutil.copyfile(text, target)
        else:
            target.write_text(text, encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="docs/site/build.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "_build", metavar="OUT")
    out = parser.parse_args(arguments).out.resolve()
    lay_out(out / "source")
    shutil.rmtree(out / "html", ignore_errors=True)
    options = ["-c", str(SITE), "-b", "html", "-d", str(out / "doctrees"), "-q", "-W", "-E"]
    code = sphinx([*options, "--keep-going", "-j", "auto", str(out / "source"), str(out / "html")])
    if code == 0:
        print(f"The site is at {out / 'html' / 'index.html'}: open it in a browser.")
    return code


if __name__ == "__main__":
    sys.exit(main())
