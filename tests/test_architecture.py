"""Who may import whom: every import statement of the project, held against the house's tables.

Imports inside functions count as all others do: an arrow that points up is not mended by
following it later.
"""

import ast
import functools
import graphlib
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# Where modules are, and the name that they are imported by: the first folder that holds them.
TREES = {
    "api": "fused_elbo",
    "estimators": "fused_elbo.estimators",
    "kernels": "fused_elbo.kernels",
    "bench": "bench",
    "examples": "",
    "tests/helpers": "helpers",
    "tests": "tests",
}
INSTALLED = ["api", "estimators", "kernels"]
ROOMS = ["estimators/compat", "estimators/dispatch", "estimators/reference"]
HOUSE = [*INSTALLED, *ROOMS, "kernels/numba", "kernels/triton"]
COMMON = [*HOUSE, "bench/harness", "bench/reporting"]
# For each folder those whose modules its own may import; all may import their neighbours.
ARROWS = {
    "api": ["estimators", "estimators/compat"],
    # Only estimators/dispatch imports more of kernels than torch_state.py.
    "estimators": ["estimators/dispatch", "estimators/reference", "kernels"],
    "estimators/compat": ["estimators", "estimators/dispatch", "estimators/reference"],
    "estimators/dispatch": ["estimators/reference", "kernels"],
    "estimators/reference": ["kernels"],
    "kernels": [],
    "kernels/numba": ["kernels"],  # of which rows.py alone
    "kernels/triton": ["kernels"],  # the same
    "bench/harness": HOUSE,
    "bench/reporting": ["bench/harness"],
    "bench/operations": COMMON,
    "bench/samples": [*COMMON, "bench/operations"],
    "bench/mixtures": [*COMMON, "bench/operations"],
    "bench/drop_ins": [*COMMON, "bench/operations", "bench/samples"],
    "bench/counts": [*COMMON, "bench/drop_ins"],
    "bench/quality": COMMON,
    "bench/single_cell": COMMON,
    "bench/static": COMMON,
    "examples": ["api", "estimators"],
}
# bench/ itself has the commands and suites.py, which know all of the above.
ARROWS["bench"] = [folder for folder in ARROWS if folder != "examples"]
# The packages of others that a folder may import, beside the standard library.
OUTSIDE = {
    "api": set(),
    "estimators": {"torch", "arviz_stats"},  # the latter where it is installed
    "estimators/compat": {"torch"},
    "estimators/dispatch": {"torch"},
    "estimators/reference": {"torch"},
    "kernels": {"torch"},
    "kernels/numba": {"torch", "numpy", "numba", "llvmlite"},
    "kernels/triton": {"torch", "triton"},
}
# Only this folder imports kernels/, but for what all may ask of torch; only that module loads a
# backend, by its name.
DISPATCH = "estimators/dispatch"
TORCH_STATE = "fused_elbo.kernels.torch_state"
LOADER = "fused_elbo.kernels.backends"
# Imports of the project's own modules inside functions, as (module, imported): none.
IN_FUNCTIONS = set()


class Import(NamedTuple):
    name: str  # absolute, of a module of the project where there is one
    relative: bool
    in_function: bool


def module_name(path):
    """('bench.cases' or the like, whether it is a package), for a file of one of the trees."""
    tree = next(tree for tree in TREES if path.is_relative_to(ROOT / tree))
    parts = [TREES[tree], *path.relative_to(ROOT / tree).with_suffix("").parts]
    package = parts[-1] == "__init__"
    return ".".join(part for part in parts[: len(parts) - package] if part), package


def files(tree):
    return sorted((ROOT / tree).rglob("*.py"))


@functools.cache
def paths():
    """{module: file}, of the whole project."""
    return {module_name(path)[0]: path for tree in TREES for path in files(tree)}


def folder_of(module):
    return paths()[module].parent.relative_to(ROOT).as_posix()


def modules(tree):
    return [module_name(path)[0] for path in files(tree)]


def absolute(node, module, package):
    """The module that ``from ... import`` names, without its dots."""
    if node.level == 0:
        return node.module
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + package]
    return ".".join([*parts, node.module] if node.module else parts)


def statements(node, in_function=False):
    """(import statement, whether a function holds it), of a whole module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from statements(child, in_function or function)


@functools.cache
def imports(module):
    """Every Import of a module."""
    path, found = paths()[module], []
    for node, in_function in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, False, in_function) for alias in node.names]
            continue
        base = absolute(node, module, path.name == "__init__.py")
        for alias in node.names:
            below = f"{base}.{alias.name}"
            name = below if below in paths() else base
            found.append(Import(name, node.level > 0, in_function))
    return found


def own_imports(module):
    return [i for i in imports(module) if i.name in paths()]


def test_every_folder_has_its_arrows():
    folders = {folder_of(m) for tree in (*INSTALLED, "bench", "examples") for m in modules(tree)}
    assert set(ARROWS) == folders


@pytest.mark.parametrize("folder", ARROWS)
def test_import_arrows(folder):
    """api -> estimators -> kernels; tools -> what is installed; no suite of another suite."""
    allowed = {folder, *ARROWS[folder]}
    wrong = [
        f"{module} imports {i.name}"
        for module in paths()
        if folder_of(module) == folder
        for i in own_imports(module)
        if folder_of(i.name) not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", OUTSIDE)
def test_packages_of_others(folder):
    """Kernels know torch and their own language alone; the project itself is met relatively."""
    allowed = OUTSIDE[folder] | set(sys.stdlib_module_names)
    wrong = [
        f"{module} imports {i.name}"
        for module in paths()
        if folder_of(module) == folder
        for i in imports(module)
        if not i.relative and i.name.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_nothing_installed_reaches_the_tools():
    for module in (m for tree in INSTALLED for m in modules(tree)):
        tops = {i.name.split(".")[0] for i in imports(module)}
        assert not tops & {"bench", "tests", "examples", "helpers"}, module


def test_only_dispatch_imports_kernels():
    importers = {
        folder_of(module)
        for tree in ("api", "estimators")
        for module in modules(tree)
        for i in own_imports(module)
        if folder_of(i.name).split("/")[0] == "kernels" and i.name != TORCH_STATE
    }
    assert importers == {DISPATCH}


def test_backends_share_rows_alone():
    backends = "kernels/numba", "kernels/triton"
    importers = [m for m in modules("kernels") if folder_of(m) in backends]
    shared = {i.name for m in importers for i in own_imports(m) if folder_of(i.name) == "kernels"}
    assert shared == {"fused_elbo.kernels.rows"}


def loads(module):
    """Lines on which a module imports another by a name that is computed."""
    tree = ast.parse(paths()[module].read_text())
    names = {"import_module", "__import__"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.Attribute) and node.attr in names)
    ]


def test_only_one_module_loads_backends():
    """Lazily: it is loaded without any. (What no import statement shows, no arrow holds.)"""
    assert [m for tree in INSTALLED for m in modules(tree) if loads(m)] == [LOADER]
    functions = [
        node
        for node in ast.walk(ast.parse(paths()[LOADER].read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    for line in loads(LOADER):
        assert any(f.body[0].lineno <= line <= f.end_lineno for f in functions), line


@pytest.mark.parametrize("tree", ["fused_elbo", "bench", "examples", "tests"])
def test_no_circles(tree):
    names = {m for t in (INSTALLED if tree == "fused_elbo" else [tree]) for m in modules(t)}
    graph = {m: {i.name for i in own_imports(m)} & names - {m} for m in names}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_import_inside_a_function():
    """An import of the project's own modules there would hide a circle or a weight."""
    hidden = {
        (module, i.name)
        for tree in (*INSTALLED, "bench", "examples")
        for module in modules(tree)
        for i in own_imports(module)
        if i.in_function
    }
    assert hidden == IN_FUNCTIONS


def draws(module):
    return (
        folder_of(module) == "bench/reporting"
        or any(word in module.split(".")[-1] for word in ("chart", "plot"))
        or any(i.name.split(".")[0] == "matplotlib" for i in imports(module))
    )


def packages_of(module):
    """The packages that Python imports before it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@pytest.mark.parametrize("module", [m for m in modules("bench") if draws(m)])
def test_plotting_imports_no_torch(module):
    """Neither itself nor through the modules that it imports."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        eager = [i for i in imports(name) if not i.in_function]
        assert not any(i.name.split(".")[0] in ("torch", "triton") for i in eager), name
        reached = [n for i in eager for n in (*packages_of(i.name), i.name)]
        waiting += [n for n in (*packages_of(name), *reached) if n in paths()]
