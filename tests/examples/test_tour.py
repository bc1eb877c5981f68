"""examples/tour.ipynb: it runs from top to bottom, and what it prints is true."""

import re

import nbformat
from nbclient import NotebookClient

from helpers.scripts import EXAMPLES

TOUR = EXAMPLES / "tour.ipynb"


def printed(notebook):
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


def pictures(notebook):
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return sum("image/png" in o.get("data", {}) for o in outputs)


def test_tour_runs():
    committed = nbformat.read(TOUR, as_version=4)
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    elbo, kl, evidence = (
        float(re.search(rf"{name}.* (-?\d+\.\d+)", printed(notebook))[1])
        for name in ("ELBO of the fitted", "KL", "log evidence")
    )
    assert abs(elbo + kl - evidence) < 2e-4
    assert float(re.search(r"test ELBO: (-\d+\.\d+)", printed(notebook))[1]) > -27.2  # of pixels
    values = re.findall(r"^(?:by_\w+|elbo_loss) +(\d+\.\d+) nats", printed(notebook), re.MULTILINE)
    assert len(values) == 3
    assert pictures(notebook) == pictures(committed) == 3


def test_committed_outputs_are_of_this_code():
    """All cells were run, in order, and none failed."""
    code = [c for c in nbformat.read(TOUR, as_version=4).cells if c.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(o.output_type != "error" for cell in code for o in cell.outputs)
