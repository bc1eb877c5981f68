"""A kernel's PTX as Python functions, one a basic block, and how threads go through them."""

import os
import re
from collections import Counter

import numpy as np

from . import approximations, arithmetic
from .arithmetic import UNSIGNED
from .faults import Fault
from .instructions import Builder
from .memory import Memory
from .parser import matching, statements

LANES = 8192  # threads at once
EXECUTED = Counter()  # how often all threads together executed each opcode
EXITED = 2**30


def put(mask, value, old):
    if mask is None:
        return value
    return np.where(mask, value, old)


def both(mask, predicate):
    if mask is None:
        return None if predicate.all() else predicate
    return mask & predicate


NAMES = {name: getattr(np, name) for name in (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32",
    "float64")}  # fmt: skip


class Program:
    def __init__(self, text, name):
        self.name, self.text, self.notes = name, text, Counter()
        head = text[text.index(".entry") :]
        head, body = head[: head.index("{")], head[head.index("{") + 1 :]
        body = body[: matching(body)]
        found = re.findall(r"\.param\s+([^,()]*?)\s*(\w+)\s*(?=[,)\n])", head[head.index("(") :])
        self.params = {name: i for i, (_, name) in enumerate(found)}
        required = re.search(r"\.reqntid\s+(\d+)", head)
        self.required = int(required[1]) if required else None
        listing, registers = statements(body)
        self.build(listing, registers)

    def build(self, listing, registers):
        builder = Builder(registers, self.params)
        blocks, labels, self.meetings = [[]], {}, set()
        for label, predicate, opcode, operands in listing:
            if label:
                if blocks[-1]:
                    blocks.append([])
                labels[label] = len(blocks) - 1
                continue
            barrier = opcode in ("bar.sync", "barrier.sync")
            meets = opcode.startswith(("shfl.sync", "ldmatrix", "stmatrix"))
            if (barrier or meets and len(blocks) - 1 not in self.meetings) and blocks[-1]:
                blocks.append([])
            if barrier or meets:  # threads wait there for the others of their block or warp
                self.meetings.add(len(blocks) - 1)
            blocks[-1].append((predicate, opcode, operands))
            if barrier or opcode.split(".")[0] in ("bra", "ret", "exit"):
                blocks.append([])
        self.opcodes, source, self.sizes = [], [], []
        for number, block in enumerate(blocks):
            lines, ending = [], ("next", None, None)
            counts = Counter()
            for predicate, opcode, operands in block:
                counts[opcode] += 1
                name = opcode.split(".")[0]
                if name == "bra":
                    ending = ("bra", predicate, labels[operands[0]])
                elif name in ("ret", "exit"):
                    ending = ("ret", predicate, None)
                elif name in ("bar", "barrier"):
                    if opcode == "bar.warp.sync":
                        continue
                    if opcode not in ("bar.sync", "barrier.sync") or operands != ["0"] or predicate:
                        builder.unknown[f"{opcode} {operands}"] += 1
                    lines.append("memory.barrier(M)")
                else:
                    lines += builder.instruction(predicate, opcode, operands)
            kind, predicate, target = ending
            condition = builder.read(predicate, "pred") if predicate else "None"
            lines.append(f"return {condition}")
            self.opcodes.append(counts)
            self.sizes.append((kind, target))
            inside = "\n".join("    " + line for line in lines)
            source.append(f"def block{number}(R, S, M, memory):\n{inside}\n")
        if builder.unknown:
            raise Fault(f"{self.name}: instructions that are not known: {dict(builder.unknown)}")
        self.count = len(blocks)
        # Of what nobody wrote yet: no number that passes for a result.
        self.undefined = [
            np.zeros(1, bool)
            if bits == 1
            else np.full(bits // 8, 0x7B, np.uint8).view(UNSIGNED[bits])
            for bits in registers.values()
        ]
        space = {**globals(), **NAMES, **builder.constants}
        self.source = "\n".join(source)
        exec(compile(self.source, f"<ptx {self.name}>", "exec"), space)
        self.functions = [space[f"block{n}"] for n in range(self.count)]

    def run(self, grid, warps, shared, values, tensors):
        threads = 32 * warps
        if self.required not in (None, threads):
            raise Fault(f"{self.name}: launched with {threads} threads, made for {self.required}")
        memory = Memory(self, tensors, values, threads, shared)
        total = grid[0] * grid[1] * grid[2]
        each = max(1, LANES // threads)
        executed = Counter()
        with np.errstate(all="ignore"):
            for first in range(0, total, each):
                self.blocks(memory, first, min(each, total - first), grid, executed)
        for number, times in executed.items():
            for opcode, count in self.opcodes[number].items():
                EXECUTED[opcode] += count * times
        notes, self.notes = dict(self.notes), Counter()
        return {"notes": notes, "instructions": sum(
            times * sum(self.opcodes[n].values()) for n, times in executed.items())}  # fmt: skip

    def blocks(self, memory, first, count, grid, executed):
        memory.begin(first, count)
        lanes, threads = memory.lanes, memory.threads
        block, tid = np.arange(lanes) // threads + first, np.arange(lanes) % threads
        u32 = lambda v: np.asarray(v, np.uint32).reshape(-1)  # noqa: E731
        special = {
            "%tid.x": u32(tid), "%tid.y": u32(0), "%tid.z": u32(0),
            "%ntid.x": u32(threads), "%ntid.y": u32(1), "%ntid.z": u32(1),
            "%ctaid.x": u32(block % grid[0]), "%ctaid.y": u32(block // grid[0] % grid[1]),
            "%ctaid.z": u32(block // (grid[0] * grid[1])),
            "%nctaid.x": u32(grid[0]), "%nctaid.y": u32(grid[1]), "%nctaid.z": u32(grid[2]),
            "%laneid": u32(tid % 32), "%warpid": u32(tid // 32),
        }  # fmt: skip
        registers = list(self.undefined)
        memory.pc, here, mask = None, 0, None  # together: all are ``here``, and no mask is needed
        order, meetings = None, list(self.meetings)
        if SCHEDULE != "together" and threads > 32:
            order = tid // 32 if SCHEDULE == "first" else -(tid // 32)
            memory.pc, mask = np.zeros(lanes, np.int64), order == order.min()
        while True:
            condition = self.functions[here](registers, special, mask, memory)
            active = lanes if mask is None else int(np.count_nonzero(mask))
            executed[here] += active
            kind, target = self.sizes[here]
            if mask is None:
                goes = None if kind == "next" else True if condition is None else condition
                if goes is not None and goes is not True:
                    goes = True if goes.all() else goes if goes.any() else None
                if goes is None:
                    here += 1
                elif goes is True:
                    if kind == "ret":
                        return
                    here = target
                else:
                    goes = np.broadcast_to(goes, lanes)
                    there = EXITED if kind == "ret" else target
                    memory.pc = np.where(goes, there, here + 1)
            else:
                there = here + 1
                if kind != "next":
                    goal = EXITED if kind == "ret" else target
                    there = goal if condition is None else np.where(condition, goal, here + 1)
                memory.pc = np.where(mask, there, memory.pc)
            if memory.pc is None:
                if here >= self.count:
                    raise Fault(f"{self.name}: ran past its end")
                continue
            free = (memory.pc != EXITED) & ~np.isin(memory.pc, meetings)
            if not free.any():  # all wait: where the address is lowest, all that can be there are
                here = int(memory.pc.min())
                mask = memory.pc == here
                if here == EXITED:
                    return
            else:
                if order is not None:
                    free &= order == order[free].min()
                here = int(memory.pc[free].min())
                mask = free & (memory.pc == here)
            if order is None and mask.all():
                memory.pc = mask = None


PROGRAMS = {}


def load(text, name):
    if text not in PROGRAMS:
        PROGRAMS[text] = Program(text, name)
    return PROGRAMS[text]
