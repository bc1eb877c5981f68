"""The generated sections of README.md and docs/*.md, each between two markers of its name.

Markers on lines of their own hold paragraphs and tables; within a line they hold a sentence.
"""

import os
from pathlib import Path

from ..harness import runs
from .results import Device
from .tables import text

NONE = "No measurements yet."


def fill(root, folder, sections):
    """Fill what stands between markers; a page without, or a marker of no section, is left alone.

    ``sections`` {name: function}: of all devices, CPUs last, and of ``link(device)``, which links
    to a device's README from the page at hand, the parts of a section.
    """
    root, folder = Path(root).resolve(), Path(folder).resolve()
    if folder.parent != root:
        return
    found = sorted(runs.devices(folder), key=lambda d: (d.name.startswith("cpu"), d.name))
    devices = [Device(path) for path in found]
    for page in [*root.glob("README.md"), *sorted(root.glob("docs/*.md"))]:
        there = Path(os.path.relpath(folder, page.parent)).as_posix()

        def link(device, file="README.md", text=None, there=there):
            return f"[{text or device.info['device_name']}]({there}/{device.folder.name}/{file})"

        old = new = page.read_text(encoding="utf-8")
        for name, section in sections.items():
            new = filled(new, name, lambda of=section, link=link: text(of(devices, link)) or NONE)
        if new != old:
            page.write_text(new, encoding="utf-8", newline="\n")


def filled(page, name, content):
    """The page with ``content()`` between its markers, or as it is where they are absent."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in page or end not in page:
        return page
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    around = "\n" if rest.startswith("\n") else ""
    return f"{before}{begin}{around}{content()}{around}{end}{after}"
