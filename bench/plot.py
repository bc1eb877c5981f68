"""``python -m bench.plot [DEVICE ...]``: redraw every chart and table from the committed JSON.

Needs no torch. The same JSON gives the same bytes: figures carry no date and no version.
"""

from pathlib import Path

from .reporting import canvas, command, pages, readme
from .suites import PAGES, SUITES, write_csv

ROOT = Path(__file__).resolve().parents[1]


def draw(device):
    """All charts of a device; returns their paths."""
    folder = device.folder / "plots"
    folder.mkdir(exist_ok=True)
    with canvas.style():
        charts = {name: f for suite in SUITES for name, f in suite.charts(device).items()}
        for path in folder.glob("*.png"):
            if path.stem not in charts:
                path.unlink()  # a chart of data that is no longer there
        return [canvas.save(figure, folder / f"{name}.png") for name, figure in charts.items()]


def main(arguments=None):
    folder, devices = command.parsed("plot", __doc__, arguments)
    for device in devices:
        charts = draw(device)
        write_csv(device.folder)
        readme.write(device, charts, SUITES)
        print(f"{device.folder}: {len(charts)} charts, summary.csv, README.md")
    pages.fill(ROOT, folder, PAGES)


if __name__ == "__main__":
    main()
