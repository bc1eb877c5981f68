"""A launch: all threads of many blocks at once, a basic block after another.

A register is an array over threads, or of one element where all threads have the same. Threads that
went apart at a branch run the block of the lowest address first, and so meet again.
"""

import os
from collections import Counter

import numpy as np

from .faults import Fault
from .memory import Memory

LANES = 8192  # threads at once
EXITED = 2**30
# Warps run in step, or each as far as the next barrier: the first warp first, or the last.
SCHEDULE = os.environ.get("PTX_SCHEDULE", "together")
LIMITS = 2**31 - 1, 65_535, 65_535
EXECUTED: Counter = Counter()  # how often all threads together executed each opcode


def run(program, grid, warps, shared, values, tensors):
    """Run a kernel on CPU tensors. ``values`` are (type, argument), ``tensors`` (name, tensor).

    Threads that hold the same element all read it, and only one of them writes it, so a race in
    global memory may be one that does not matter. It matters if results differ between schedules.
    """
    if any(n > most for n, most in zip(grid, LIMITS, strict=True)):
        raise Fault(f"{program.name}: a grid of {grid} is over CUDA's limits {LIMITS}")
    threads = 32 * warps
    if program.required_threads not in (None, threads):
        raise Fault(f"{program.name}: {threads} threads, made for {program.required_threads}")
    memory = Memory(program, tensors, values, threads, shared)
    before = memory.snapshot()
    run_blocks(program, memory, grid, SCHEDULE)
    notes, program.notes = dict(program.notes), Counter()
    if any(note.startswith("race") for note in notes) and before is not None:
        found = memory.snapshot()
        for schedule in ("first", "last"):
            memory.restore(before)
            run_blocks(program, memory, grid, schedule)
            if any((a != b).any() for a, b in zip(memory.snapshot(), found, strict=True)):
                raise Fault(f"{program.name}: results depend on which warp is first: {notes}")
        program.notes.clear()
    return notes


def run_blocks(program, memory, grid, schedule):
    total = grid[0] * grid[1] * grid[2]
    each = max(1, LANES // memory.threads)
    with np.errstate(all="ignore"):
        for first in range(0, total, each):
            run_some(program, memory, first, min(each, total - first), grid, schedule)


def special_registers(thread, block, threads, grid):
    u32 = lambda v: np.asarray(v, np.uint32).reshape(-1)  # noqa: E731
    return {
        "%tid.x": u32(thread), "%tid.y": u32(0), "%tid.z": u32(0),
        "%ntid.x": u32(threads), "%ntid.y": u32(1), "%ntid.z": u32(1),
        "%ctaid.x": u32(block % grid[0]), "%ctaid.y": u32(block // grid[0] % grid[1]),
        "%ctaid.z": u32(block // (grid[0] * grid[1])),
        "%nctaid.x": u32(grid[0]), "%nctaid.y": u32(grid[1]), "%nctaid.z": u32(grid[2]),
        "%laneid": u32(thread % 32), "%warpid": u32(thread // 32),
    }  # fmt: skip


def run_some(program, memory, first, count, grid, schedule):
    """Blocks ``first`` to ``first + count`` of the grid."""
    memory.begin(first, count)
    lanes, threads = memory.lanes, memory.threads
    thread, block = np.arange(lanes) % threads, np.arange(lanes) // threads + first
    special = special_registers(thread, block, threads, grid)
    registers, meetings = list(program.undefined), list(program.meetings)
    # While all threads are ``here`` there is neither a mask nor a place of each.
    place, here, mask, order = None, 0, None, None
    if schedule != "together" and threads > 32:
        order = thread // 32 if schedule == "first" else -(thread // 32)
        place, mask = np.zeros(lanes, np.int64), order == order.min()
    while True:
        if here >= len(program.functions):
            raise Fault(f"{program.name}: ran past its end")
        condition = program.functions[here](registers, special, mask, memory)
        active = lanes if mask is None else int(np.count_nonzero(mask))
        for opcode, times in program.opcodes[here].items():
            EXECUTED[opcode] += times * active
        kind, target = program.endings[here]
        goal = here + 1 if kind == "next" else EXITED if kind == "ret" else target
        if condition is None or (mask is None and condition.all()):
            there = goal
        elif mask is None and not condition.any():
            there = here + 1
        else:
            there = np.broadcast_to(np.where(condition, goal, here + 1), lanes)
        if mask is None and np.ndim(there) == 0:
            if there == EXITED:
                return
            here = there
            continue
        place = np.array(there) if mask is None else np.where(mask, there, place)
        free = (place != EXITED) & ~np.isin(place, meetings)
        if free.any():
            if order is not None:
                free &= order == order[free].min()
            here = int(place[free].min())
            mask = free & (place == here)
        else:  # all wait: at the lowest address there are all that can be there
            here = int(place.min())
            if here == EXITED:
                return
            mask = place == here
        if order is None and mask.all():
            place = mask = None
