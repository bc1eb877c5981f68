"""Python text for what PTX instructions read and write: registers, numbers and addresses."""

import re
from collections import Counter

import numpy as np

from .arithmetic import SIGNED, UNSIGNED, numpy_type
from .faults import Fault
from .memory import SHARED_BASE


class Operands:
    """The registers, parameters and constants of one kernel."""

    def __init__(self, registers, params):
        self.registers = {name: (i, bits) for i, (name, bits) in enumerate(registers.items())}
        self.params, self.constants, self.unknown = params, {}, Counter()

    def constant(self, value):
        name = f"K{len(self.constants)}"
        self.constants[name] = value
        return name

    def read(self, operand, kind):
        """An expression of an operand, as numpy's type for PTX's ``kind``."""
        if kind == "pred":
            if operand.startswith("!"):
                return f"~{self.read(operand[1:], kind)}"
            if re.fullmatch(r"-?\d+", operand):
                return self.constant(np.array([int(operand) != 0]))
            return f"R[{self.registers[operand][0]}]"
        type_ = numpy_type("b16" if kind.startswith("bf") else kind)
        bits = np.dtype(type_).itemsize * 8
        if operand in self.registers:
            index, width = self.registers[operand]
            if width == bits:
                view = "" if type_ in UNSIGNED.values() else f".view({type_.__name__})"
                return f"R[{index}]{view}"
            if width > bits:
                return f"R[{index}].astype({UNSIGNED[bits].__name__}).view({type_.__name__})"
            raise Fault(f"{operand} is narrower than {kind}")
        if operand.startswith("%"):
            return f"S[{operand!r}].astype({type_.__name__})"
        if operand == "global_smem":
            return self.constant(np.array([SHARED_BASE], type_))
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            value = np.array([int(match[1], 16)], np.uint32)
            return self.constant(value.view(type_))
        if match := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", operand):
            return self.constant(np.array([int(match[1], 16)], np.uint64).view(type_))
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?", operand):
            value = int(operand.rstrip("U"), 0) & (2**bits - 1)
            return self.constant(np.array([value], UNSIGNED[bits]).view(type_))
        raise Fault(f"operand {operand!r}")

    def write(self, operand, value, kind):
        """A line that puts an expression of PTX's ``kind`` into a register."""
        if operand == "_":
            return None
        index, width = self.registers[operand]
        if kind != "pred":
            bits = np.dtype(numpy_type("b16" if kind.startswith("bf") else kind)).itemsize * 8
            if width == bits:
                value = f"({value}).view({UNSIGNED[bits].__name__})"
            elif kind.startswith("s"):
                value = (
                    f"({value}).astype({SIGNED[width].__name__}).view({UNSIGNED[width].__name__})"
                )
            else:
                value = f"({value}).astype({UNSIGNED[width].__name__})"
        return f"R[{index}] = put(M, {value}, R[{index}])"

    def address(self, operand):
        inside = operand.strip()[1:-1].strip()
        match = re.fullmatch(r"([%$\w]+)\s*(?:\+\s*(-?\w+))?", inside)
        if not match:
            raise Fault(f"address {operand!r}")
        return match[1], int(match[2] or "0", 0)
