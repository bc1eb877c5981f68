"""Python text for PTX's loads, stores, shuffles and matrix accesses: a part of ``Builder``."""

import numpy as np

from .arithmetic import numpy_type
from .faults import Fault
from .memory import SHARED_BASE


class MemoryInstructions:
    def op_shfl(self, parts, kind, operands):
        target, a, b, c, members = operands
        if "|" in target or "sync" not in parts:
            raise Fault("form")
        values = [self.read(o, "b32") for o in (a, b, c, members)]
        value = f"memory.shuffle(M, {parts[2]!r}, {', '.join(values)})"
        return self.write(target, value, "b32")

    def matrix(self, parts, operands):
        """(registers, address, how many 8 x 8 matrices of halves, whether transposed)."""
        if parts[1:4] != ["sync", "aligned", "m8n8"] or parts[-1] != "b16":
            raise Fault("form")
        given = operands if operands[0].startswith("{") else operands[::-1]
        names = [t.strip() for t in given[0].strip("{}").split(",")]
        name, offset = self.address(given[1])
        return names, f"{self.read(name, 'b32')}, {offset}, {len(names)}, {'trans' in parts}"

    def op_ldmatrix(self, parts, kind, operands):
        names, where = self.matrix(parts, operands)
        lines = [f"V = memory.load_matrix(M, {where})"]
        return lines + [self.write(n, f"V[{i}]", "b32") for i, n in enumerate(names)]

    def op_stmatrix(self, parts, kind, operands):
        names, where = self.matrix(parts, operands)
        values = ", ".join(self.read(n, "b32") for n in names)
        return f"memory.store_matrix(M, {where}, [{values}])"

    def op_ld(self, parts, kind, operands):
        space = next((p for p in parts if p in ("param", "global", "shared", "local")), "generic")
        name, offset = self.address(operands[1])
        if space == "param":
            index = self.params[name]
            if offset:
                raise Fault("offset")
            return self.write(
                operands[0], f"memory.param({index}, {numpy_type(kind).__name__})", kind
            )
        if space not in ("global", "shared"):
            raise Fault(f"{space} memory")
        targets = [t.strip() for t in operands[0].strip("{}").split(",")]
        if name == "global_smem":
            base = self.constant(np.array([SHARED_BASE], np.uint32))
        else:
            base = self.read(name, "b64" if space == "global" else "b32")
        olds = ", ".join("None" if t == "_" else f"R[{self.registers[t][0]}]" for t in targets)
        lines = [
            f"V = memory.load_{space}(M, {base}, {offset}, {numpy_type(kind).__name__}, [{olds}])"
        ]
        for i, target in enumerate(targets):
            lines.append(self.write(target, f"V[{i}]", kind))
        return lines

    def op_st(self, parts, kind, operands):
        space = next((p for p in parts if p in ("global", "shared", "local")), "generic")
        if space not in ("global", "shared"):
            raise Fault(f"{space} memory")
        name, offset = self.address(operands[0])
        sources = [t.strip() for t in operands[1].strip("{}").split(",")]
        if name == "global_smem":
            base = self.constant(np.array([SHARED_BASE], np.uint32))
        else:
            base = self.read(name, "b64" if space == "global" else "b32")
        values = ", ".join(self.read(s, kind) for s in sources)
        return f"memory.store_{space}(M, {base}, {offset}, {numpy_type(kind).__name__}, [{values}])"
