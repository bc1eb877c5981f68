"""The machine code of the float32 loops in kernels/numba: a table, and its faults; for x86.

A test runs it; ``python -m helpers.cpu_code`` in this folder's parent does so alone. A loop is to
work in packed registers: of scalar arithmetic it has at most one more copy of the body, for the end
of a tile. It is to call nothing, for a call to libm would leave it scalar; but memcpy, the counts
of an array's references, and what is a loop itself.
"""

import os
import platform
import re
import sys
import tempfile

# Machine code that comes from a cache cannot be read.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()

from numba.core.dispatcher import Dispatcher

from fused_elbo.kernels.numba.compiler import Restrict
from helpers.op_calls import op_calls, results_of

FOLDER = "fused_elbo.kernels.numba."
CALL = re.compile(r"(?:movabsq\s+\$|callq?\s+)([A-Za-z_]\w*)")
# Arithmetic on the registers of 8 or 16 float32 numbers, and on a single number.
PACKED = re.compile(r"\s(v(?!p?mov|p?broadcast)\w+)\s.*%[yz]mm")
SCALAR = re.compile(r"\s(v(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)s[sd])\s")


def of_package():
    """(name, function) of whatever numba compiles in kernels/numba."""
    for module, found in sorted(sys.modules.items()):
        for own, function in vars(found).items() if module.startswith(FOLDER) else ():
            if isinstance(function, Dispatcher):
                yield module, own, function


def loops():
    """(name, function) of what @elementwise and @row_sums made, and of the sum of a tile."""
    for module, own, function in of_package():
        name = f"{module.removeprefix(FOLDER)}.{own}"
        if function.py_func.__module__ == module and is_loop(function):
            yield name, function
        yield from inner_loops(name, function)


def machine_code():
    """{symbol: assembly} of what the kernels consist of; a loop is the same in all of them."""
    found, last = {}, ""
    for _, _, function in of_package():
        if "body" in function.py_func.__globals__:
            for code in function.inspect_asm().values():
                for part in re.split(r"(?m)^(?=\S+:\s*$|\S+:\s+#)", code):
                    symbol, _, rest = part.partition(":")
                    if symbol.startswith(".L"):
                        found[last] += rest
                    else:
                        last = symbol.strip('"')
                        found[last] = rest
    return found


def inner_loops(name, function):
    """The loops of the functions in a function's closure, and in that of a kernel's body."""
    body = function.py_func.__globals__.get("body")
    for cell in (body or function).py_func.__closure__ or ():
        inner = cell.cell_contents
        if isinstance(inner, Dispatcher):
            if is_loop(inner):
                yield f"{name}.{inner.__name__}", inner
            yield from inner_loops(f"{name}.{inner.__name__}", inner)


def is_loop(function):
    if not isinstance(function, Dispatcher):
        return False
    return function._compiler.pipeline_class is Restrict or function.__name__ == "lane_sum"


def describe(code):
    """(packed, scalar, calls): instructions, and names."""
    return len(PACKED.findall(code)), len(SCALAR.findall(code)), set(CALL.findall(code))


def problem_of(name, packed, scalar, calls):
    if calls - {"NRT_MemInfo_call_dtor", "NRT_decref", "NRT_incref", "memcpy"}:
        return "calls what it should not"
    if packed < scalar or (packed == 0 and name != "device.fill"):  # which stores, and does no more
        return "is not packed"
    return None


def main():
    if platform.machine() != "x86_64":
        print("CPU kernels: only x86 assembly can be read")
        return 0
    for _ in results_of(op_calls("cpu")):
        pass
    problems, seen = [], 0
    print(f"{'loop':48} {'packed':>6} {'scalar':>6}  calls")
    found = machine_code()
    symbols = {o.fndesc.mangled_name for _, loop in loops() for o in loop.overloads.values()}
    for name, function in loops():
        compiled = [found.get(o.fndesc.mangled_name) for o in function.overloads.values()]
        if not any(compiled):
            problems.append(f"{name} was not reached")
        for code in filter(None, compiled):
            packed, scalar, calls = describe(code)
            calls -= symbols
            print(f"{name:48} {packed:6} {scalar:6}  {', '.join(sorted(calls))}")
            problem, seen = problem_of(name, packed, scalar, calls), seen + 1
            problems += [f"{name} {problem}"] if problem else []
    print("\n".join(problems) or f"CPU kernels: {seen} loops are packed and call nothing")
    return 1 if problems or seen < 40 else 0


if __name__ == "__main__":
    sys.exit(main())
