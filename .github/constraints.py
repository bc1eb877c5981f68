"""``python .github/constraints.py lowest|pinned|newest``: constraints for pip, printed.

``lowest`` are the lower bounds that pyproject.toml states for what the package itself needs, and
the pins for the rest. ``pinned`` is constraints.txt. ``newest`` has none.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = r'^    "([\w-]+)>=([\d.]+)(; [^"]*)?"'


def chosen(name):
    if name == "newest":
        return ""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if name == "pinned":
        return pins
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = table.partition("dependencies = [")[2].partition("]")[0]
    lowest = {
        m[1]: f"{m[1]}=={m[2]}{m[3] or ''}" for m in re.finditer(NEEDED, needed, re.MULTILINE)
    }
    lowest["numpy"] = "numpy<2.4  # the interpreter of triton 3.6 needs it"
    others = [line for line in pins.splitlines() if re.split("[=;<]", line)[0] not in lowest]
    return "\n".join([*(line.replace("'", '"') for line in lowest.values()), *others])


if __name__ == "__main__":
    print(chosen(sys.argv[1]))
