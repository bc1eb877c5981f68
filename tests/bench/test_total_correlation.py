"""The table of what the beta-TCVAEs estimate: the command's and that of docs/drop-ins.md."""

import math
import re

import pytest
import torch

pytest.importorskip("rich")

from bench import total_correlation as command


@pytest.fixture(scope="module")
def found():
    """The first of the batches that the document's table is of."""
    return command.measured(batches=1)


def rows_of_the_document():
    section = command.PAGE.read_text().split("<!-- total-correlation:begin -->")[1]
    lines = section.split("<!-- total-correlation:end -->")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_document_has_what_the_command_says(found):
    """Names, columns, and numbers: a batch's are within four of its standard errors."""
    header, _, *rows = rows_of_the_document()
    assert header == command.table({}).shown(0)[0]
    assert [row[0] for row in rows] == [name.text for name in found]
    for row, values in zip(rows, found.values(), strict=True):
        for cell, value in zip(row[1:], values[0].tolist(), strict=True):
            if not cell:
                assert value == 0
                continue
            mean, error = map(float, cell.split(" ± "))
            assert abs(value - mean) <= 4 * math.sqrt(command.BATCHES + 1) * error


def test_same_loss_same_number(found):
    """Code of another author gives the number that ours gives."""
    by_short_name = {name.short: values for name, values in found.items()}
    for a, b in (
        ("weighted", "rtqichen"),
        ("weighted", "pythae, no mss"),
        ("rtqichen, mss", "pythae"),
        ("disvae", "antixk"),
    ):
        torch.testing.assert_close(by_short_name[a], by_short_name[b], rtol=1e-4, atol=1e-3)


def test_terms_are_those_of_their_names(found):
    """log q(z) and mutual information add up to log q(z|x), which no estimate changes."""
    sums = [(values[0, 0] + values[0, 1]).item() for values in found.values()]
    for total in sums:
        assert total == pytest.approx(sums[0], abs=1e-3)
    exact, stratified = (found[name] for name in list(found)[:2])
    torch.testing.assert_close(stratified[0, 3], stratified[0, 2] - exact[0, 2], rtol=0, atol=1e-5)


def test_command(found, monkeypatch, tmp_path, capsys):
    both = {name: torch.cat([values, values + 0.02]) for name, values in found.items()}
    monkeypatch.setattr(command, "measured", lambda: both)
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- total-correlation:begin -->\nold\n<!-- total-correlation:end -->\nb\n")
    monkeypatch.setattr(command, "PAGE", page)
    command.main([])
    assert re.search(r"disvae, no mss +\d\.\d\d ± 0\.0\d", capsys.readouterr().out)
    assert "old" in page.read_text()
    command.main(["--write"])
    text = page.read_text()
    assert text.startswith("a\n")
    assert text.endswith("\nb\n")
    assert "| `AntixKBetaTCVAELoss` | -5" in text
    assert "old" not in text


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(1.234, 0.031, "1.23 ± 0.04"), (-0.0004, 0.0001, "0.00 ± 0.01"), (0.0, 0.0, "")],
)
def test_shown(mean, error, text):
    assert command.shown(torch.tensor(mean), torch.tensor(error)) == text
