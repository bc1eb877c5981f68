"""A kernel's PTX as Python functions, one per basic block, with the opcodes of each."""

import re
from collections import Counter

import numpy as np

from . import approximations, arithmetic
from .arithmetic import FLOATS, SIGNED, UNSIGNED
from .faults import Fault
from .instructions import Builder
from .parser import matching, statements

BARRIERS = "bar.sync", "barrier.sync"


def put(mask, value, old):
    if mask is None:
        return value
    return np.where(mask, value, old)


def both(mask, predicate):
    if mask is None:
        return None if predicate.all() else predicate
    return mask & predicate


# The names that the text of an instruction may use.
NAMES = {
    **vars(arithmetic),
    **vars(approximations),
    **{t.__name__: t for table in (UNSIGNED, SIGNED, FLOATS) for t in table.values()},
    "put": put,
    "both": both,
}  # fmt: skip


class Program:
    """``functions[n](registers, special, mask, memory)`` runs basic block n.

    It returns the condition of the branch or return at the block's end, or None for no condition;
    ``endings[n]`` is ("next" | "bra" | "ret", the block that a branch goes to).
    """

    def __init__(self, text, name):
        self.name, self.notes = name, Counter()
        head = text[text.index(".entry") :]
        head, body = head[: head.index("{")], head[head.index("{") + 1 :]
        body = body[: matching(body)]
        found = re.findall(r"\.param\s+([^,()]*?)\s*(\w+)\s*(?=[,)\n])", head[head.index("(") :])
        self.params = {name: i for i, (_, name) in enumerate(found)}
        required = re.search(r"\.reqntid\s+(\d+)", head)
        self.required_threads = int(required[1]) if required else None
        listing, registers = statements(body)
        blocks, labels, self.meetings = basic_blocks(listing)
        self.build(blocks, labels, registers)

    def build(self, blocks, labels, registers):
        builder = Builder(registers, self.params)
        self.opcodes, self.endings, source = [], [], []
        for number, block in enumerate(blocks):
            lines, ending, condition = [], ("next", None), "None"
            for predicate, opcode, operands in block:
                name = opcode.split(".")[0]
                if name in ("bra", "ret", "exit"):
                    ending = ("bra", labels[operands[0]]) if name == "bra" else ("ret", None)
                    condition = builder.read(predicate, "pred") if predicate else "None"
                elif name in ("bar", "barrier"):
                    if opcode == "bar.warp.sync":
                        continue
                    if opcode not in BARRIERS or operands != ["0"] or predicate:
                        builder.unknown[f"{opcode} {operands}"] += 1
                    lines.append("memory.barrier(M)")
                else:
                    lines += builder.instruction(predicate, opcode, operands)
            lines.append(f"return {condition}")
            self.opcodes.append(Counter(opcode for _, opcode, _ in block))
            self.endings.append(ending)
            inside = "\n".join("    " + line for line in lines)
            source.append(f"def block{number}(R, S, M, memory):\n{inside}\n")
        if builder.unknown:
            raise Fault(f"{self.name}: instructions that are not known: {dict(builder.unknown)}")
        # The registers that nobody wrote yet hold no number that passes for a result.
        self.undefined = [
            np.full(max(1, bits // 8), 0x7B, np.uint8).view(UNSIGNED[bits]) if bits > 1
            else np.zeros(1, bool)
            for bits in registers.values()
        ]  # fmt: skip
        space = {**NAMES, **builder.constants}
        exec(compile("\n".join(source), f"<ptx {self.name}>", "exec"), space)
        self.functions = [space[f"block{n}"] for n in range(len(blocks))]


def basic_blocks(listing):
    """(the statements of each block, {label: block}, the blocks where threads wait for others)."""
    blocks, labels, meetings = [[]], {}, set()
    for label, predicate, opcode, operands in listing:
        if label:
            if blocks[-1]:
                blocks.append([])
            labels[label] = len(blocks) - 1
            continue
        barrier = opcode in BARRIERS
        meets = opcode.startswith(("shfl.sync", "ldmatrix", "stmatrix"))
        if (barrier or (meets and len(blocks) - 1 not in meetings)) and blocks[-1]:
            blocks.append([])
        if barrier or meets:
            meetings.add(len(blocks) - 1)
        blocks[-1].append((predicate, opcode, operands))
        if barrier or opcode.split(".")[0] in ("bra", "ret", "exit"):
            blocks.append([])
    return blocks, labels, meetings


PROGRAMS: dict[str, Program] = {}


def load(text, name):
    if text not in PROGRAMS:
        PROGRAMS[text] = Program(text, name)
    return PROGRAMS[text]
