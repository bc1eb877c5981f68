"""What numba made of the float32 loops in kernels/numba: a table, and what is wrong; for x86.

``make static`` runs it, from this folder's parent. A loop is to work in packed registers: of scalar
arithmetic it has at most one more copy of the body, for the end of a tile. It is to call nothing,
for a call to libm would leave it scalar; but memcpy, and behind the loop an array's destructor.
"""

import os
import platform
import re
import sys
import tempfile

# Machine code that comes from a cache cannot be read.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()

from numba.core.dispatcher import Dispatcher

from fused_elbo.kernels.numba.compiler import Restricted
from helpers.op_calls import op_calls, results_of

FOLDER = "fused_elbo.kernels.numba."
CALL = re.compile(r"(?:movabsq\s+\$|callq?\s+)([A-Za-z_]\w*)")
# Arithmetic on the registers of 8 or 16 float32 numbers, and on a single number.
PACKED = re.compile(r"\s(v(?!p?mov|p?broadcast)\w+)\s.*%[yz]mm")
SCALAR = re.compile(r"\s(v(?:add|sub|mul|div|sqrt|fn?m(?:add|sub)\d+)s[sd])\s")


def loops():
    """(name, function) of what @elementwise and @row_sums made, and of the sum of a tile."""
    for module, found in sorted(sys.modules.items()):
        for own, function in vars(found).items() if module.startswith(FOLDER) else ():
            if not isinstance(function, Dispatcher):
                continue
            name = f"{module.removeprefix(FOLDER)}.{own}"
            if function.py_func.__module__ == module and is_loop(function):
                yield name, function
            yield from inner_loops(name, function)


def inner_loops(name, function):
    """Those of the functions in a function's closure, and in that of a kernel's body."""
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
    return function._compiler.pipeline_class is Restricted or function.__name__ == "lane_sum"


def describe(code):
    """(packed, scalar, calls): instructions, and names."""
    return len(PACKED.findall(code)), len(SCALAR.findall(code)), set(CALL.findall(code))


def problem_of(name, packed, scalar, calls):
    if calls - {"NRT_MemInfo_call_dtor", "memcpy"}:
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
    for name, function in loops():
        if not function.overloads:
            problems.append(f"{name} was not reached")
        for code in function.inspect_asm().values():
            packed, scalar, calls = describe(code)
            print(f"{name:48} {packed:6} {scalar:6}  {', '.join(sorted(calls))}")
            problem, seen = problem_of(name, packed, scalar, calls), seen + 1
            problems += [f"{name} {problem}"] if problem else []
    print("\n".join(problems) or f"CPU kernels: {seen} loops are packed and call nothing")
    return 1 if problems or seen < 40 else 0


if __name__ == "__main__":
    sys.exit(main())
