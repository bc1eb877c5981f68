"""Formulas as pictures in the page: drawn when the site is built, by ziamath.

A reader's browser then needs no script, no font and no network for them.
"""

import xml.etree.ElementTree as ET

import ziamath
from docutils.nodes import SkipNode

SIZE = 18  # pixels; text is 16
ziamath.config.svg2 = False  # glyphs stand in each picture: no two pictures share an id


def drawn(latex, *, display):
    formula = ziamath.Latex(latex, size=SIZE, inline=not display, color="currentColor")
    svg = formula.svgxml()
    svg.set("role", "img")
    svg.set("aria-label", latex)
    if not display:
        svg.set("style", f"vertical-align: {formula.getyofst():.2f}px")
    return ET.tostring(svg, encoding="unicode")


def visit_inline(translator, node):
    translator.body.append(f'<span class="math">{drawn(node.astext(), display=False)}</span>')
    raise SkipNode


def visit_display(translator, node):
    latex = " ".join(node.astext().split())
    translator.body.append(f'<div class="math">{drawn(latex, display=True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("svg", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
