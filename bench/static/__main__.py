"""Read the machine code of every kernel, without a GPU.

``python -m bench.static`` compiles each kernel ahead of time, with the arguments and tiles that its
launcher would use, and writes ``results/static/<target>.json``, a table and a roofline chart.
``--check`` compiles for sm_90 only and compares with ``gates.json``; ``--set-gates`` writes that
file, 10 % above what is reached.
"""

import argparse
import os
import sys

# The report compiles for GPUs: the interpreter would leave nothing to compile.
os.environ["TRITON_INTERPRET"] = "0"

from . import gates
from .report import report, write_all


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare sm_90 with the gates")
    parser.add_argument("--set-gates", action="store_true", help="write the gates anew")
    options = parser.parse_args()
    if options.check:
        rows = report("sm_90") + report("sm_90", ("float32", "bfloat16"), (gates.UNALIGNED,))
        problems = gates.check(rows, gates.load())
        print("\n".join(problems) or "static report: every kernel is within its gates")
        return 1 if problems else 0
    if options.set_gates:
        gates.save(report("sm_90"))
        return 0
    write_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
