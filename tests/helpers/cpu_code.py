"""What numba made of the loops in kernels/numba, one line of JSON a loop; for x86.

Run with an empty NUMBA_CACHE_DIR: machine code that comes from a cache cannot be read.
"""

import json
import re
import sys

from numba.core.dispatcher import Dispatcher

from fused_elbo.kernels.numba.compiler import Restrict
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
            for cell in function.py_func.__closure__ or ():
                if is_loop(cell.cell_contents):
                    yield f"{name}.{cell.cell_contents.__name__}", cell.cell_contents


def is_loop(function):
    if not isinstance(function, Dispatcher):
        return False
    return function._compiler.pipeline_class is Restrict or function.__name__ == "lane_sum"


def describe(code):
    counts = {"packed": len(PACKED.findall(code)), "scalar": len(SCALAR.findall(code))}
    return {"calls": sorted(set(CALL.findall(code))), **counts}


if __name__ == "__main__":
    for _ in results_of(op_calls("cpu")):
        pass
    for name, function in loops():
        compiled = function.inspect_asm().values()
        print(json.dumps({"name": name, "compiled": [describe(code) for code in compiled]}))
