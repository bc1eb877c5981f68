"""The start page: the README, and the sidebar."""

import documents

SIDEBAR = """
```{{toctree}}
:hidden:
:caption: Guide

examples/tour
docs/choosing-an-estimator
estimators
docs/drop-ins
docs/cpu
examples/index
```

```{{toctree}}
:hidden:
:caption: Reference

api/index
```

```{{toctree}}
:hidden:
:caption: Measured

results/index
```

```{{toctree}}
:hidden:
:caption: Inside

{others}
CONTRIBUTING
CHANGELOG
```
"""


def pages(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    others = sorted(f"docs/{path.stem}" for path in root.glob("docs/*.md"))
    sidebar = SIDEBAR.format(others="\n".join(n for n in others if f"\n{n}\n" not in SIDEBAR))
    return {documents.START: documents.relinked(root, "README.md", readme) + sidebar}
