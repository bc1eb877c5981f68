"""Sphinx's settings. Its sources are the pages that ``build.py`` lays out.

Sphinx rather than MkDocs: the docstrings are reST with roles and formulas, which autodoc renders
and mkdocstrings does not, and its search works on files without a server. Furo is readable on a
phone and asks no other host for fonts or scripts. MyST reads the same Markdown as a code host.
"""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "fused_elbo"
copyright = "the authors of fused_elbo, MIT licence"
version = release = installed("fused-elbo")
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_design",
    "sphinx_copybutton",
    "mathematics",
]
nitpicky = True  # a link that leads nowhere is a warning, and warnings are errors
nitpick_ignore_regex = [
    # Types in signatures. Other packages' pages are not there without a network.
    (r"py:(class|obj|data|exc|meth|func|attr|mod)", r"(torch|collections|typing|numpy)\b.*"),
    (r"py:class", r"Tensor|Generator|Any|optional|Implementation|Gradient|.*\._.*"),
]
html_math_renderer = "svg"  # of mathematics.py

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
toc_object_entries = False
viewcode_line_numbers = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the outputs are those that were committed; a test runs the notebook
nb_number_source_lines = False

html_theme = "furo"
html_title = f"fused_elbo {version}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "tango"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
