"""A table, described once: ``markdown`` writes it for a README, ``terminal`` for 80 columns."""

from typing import NamedTuple

from rich import box
from rich import table as rich_table
from rich.text import Text


class Cell(NamedTuple):
    """A cell that is more than its text: coloured, or shorter, in the terminal."""

    text: str
    style: str = ""
    short: str | None = None


class Table(NamedTuple):
    """A table, with a header for each column, or one for Markdown and one for the terminal.

    A column is not shown where its header is None. In the terminal the first column is aligned
    left, and all others right.
    """

    columns: list
    rows: list  # of lists of Cells or of what str shows
    title: str = ""  # in the terminal; a README has headings and sentences

    def shown(self, where, without=(None,)):
        """(headers, rows) of one rendering, 0 in Markdown and 1 in the terminal."""
        headers = [h if isinstance(h, str) else h[where] for h in self.columns]
        kept = [i for i, header in enumerate(headers) if header not in without]
        return [headers[i] for i in kept], [[row[i] for i in kept] for row in self.rows]

    def without(self, *names):
        """For Markdown alone, without columns of these names."""
        return Table(*self.shown(0, (None, *names)))


def tinted(value, text, short=None):
    """Blue where fused_elbo is faster, red where it is slower, plain within 3 %."""
    style = "bold blue" if value > 1.03 else "bold red" if value < 0.97 else ""
    return Cell(text, style, short)


def markdown(table):
    headers, rows = table.shown(0)
    texts = [[c.text if isinstance(c, Cell) else str(c) for c in row] for row in rows]
    rule = ["---"] * len(headers)
    return "\n".join("| " + " | ".join(row) + " |" for row in [headers, rule, *texts])


def text(parts):
    """Sentences and tables of a README."""
    return "\n\n".join(p if isinstance(p, str) else markdown(p) for p in parts)


def terminal(table):
    """Without frames and code marks."""
    headers, rows = table.shown(1)
    shown = rich_table.Table(
        title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0
    )
    for i, header in enumerate(headers):
        shown.add_column(header, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        shown.add_row(*map(rich_cell, row))
    return shown


def rich_cell(cell):
    if not isinstance(cell, Cell):
        return str(cell).strip("`")
    return Text(cell.text if cell.short is None else cell.short, style=cell.style)
