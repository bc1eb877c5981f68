"""Compile a kernel ahead of time and read what its machine code says. Needs no GPU."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.compiler import ASTSource

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
}
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_for(target, kernel, arguments, constexprs, warps):
    """Compile with the specialisation that Triton's launcher would choose."""
    constants = dict(constexprs)
    if target.backend != "cuda" and "PTX" in constants:
        constants["PTX"] = False
    signature, aligned = {}, {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if value is None or (type(value) is int and value == 1):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if value.data_ptr() % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp64"
    signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options={"num_warps": warps})


def nvidia_tool(name, *flags, cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [NVIDIA_TOOLS / name, *flags, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
LABEL = re.compile(r"^(\.L_x_\d+):")
TARGET = re.compile(r"\((\.L_x_\d+)\)")


def instructions(sass):
    """(opcodes, loop): all up to the last EXIT, and those of the longest loop; without NOPs."""
    opcodes, loops = opcodes_and_loops(sass)
    last = max((i + 1 for i, opcode in enumerate(opcodes) if opcode.startswith("EXIT")), default=0)
    start, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    return opcodes[:last], opcodes[start:end]


def innermost(sass):
    """The opcodes of all loops that hold no other, one after the other."""
    opcodes, loops = opcodes_and_loops(sass)
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [opcode for start, end in inner for opcode in opcodes[start:end]]


def opcodes_and_loops(sass):
    """All opcodes but NOPs, and (start, end) of each loop: from a label to a branch back to it."""
    opcodes, labels, loops = [], {}, []
    for line in map(str.strip, sass.splitlines()):
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := INSTRUCTION.search(line):
            opcode, operands = found.groups()
            if opcode == "NOP":
                continue
            opcodes.append(opcode)
            target = TARGET.search(operands) if opcode.startswith("BRA") else None
            # A branch to itself, behind the last EXIT, is the end of the program.
            if target and len(opcodes) - labels.get(target[1], len(opcodes)) > 1:
                loops.append((labels[target[1]], len(opcodes)))
    return opcodes, loops


def read_nvidia(compiled, elements, loops=None):
    """Registers, stack, local and shared memory; instructions and bytes per element.

    ``loops`` "longest": those of the loop over samples, whose turns handle ``elements`` each; what
    is around it is done once for all samples. "innermost": of the loops over latents, together.
    """
    usage = nvidia_tool("cuobjdump", "--dump-resource-usage", cubin=compiled.asm["cubin"])
    found = {key.lower(): int(n) for key, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    sass = nvidia_tool("nvdisasm", "-c", cubin=compiled.asm["cubin"])
    opcodes, loop = instructions(sass)
    counts = Counter(opcodes)
    if loops:
        opcodes = loop if loops == "longest" else innermost(sass)
    widths = Counter(
        f"{opcode[:3]} {next((w for w in opcode.split('.') if w.isdigit()), '32')}"
        for opcode in opcodes
        if opcode.startswith(("LDG", "STG"))
    )
    wide = sum(n for name, n in widths.items() if name.endswith("128"))
    return {
        "registers": found["reg"],
        "stack": found["stack"],
        "local": found["local"] + counts["LDL"] + counts["STL"],
        "shared": found["shared"],
        "global_accesses": dict(sorted(widths.items())),
        "instructions": len(opcodes),
        "instructions_per_element": round(len(opcodes) / elements, 2),
        "exponentials_per_element": round(opcodes.count("MUFU.EX2") / elements, 2),
        "bytes_per_element": round(16 * wide / elements, 2),
    }


def read_amd(compiled):
    """Registers and scratch from the metadata of the assembly: compiled only, not judged."""
    assembly = compiled.asm["amdgcn"]
    keys = {
        "registers": "vgpr_count",
        "stack": "private_segment_fixed_size",
        "local": "vgpr_spill_count",
        "shared": "group_segment_fixed_size",
    }
    found = {name: re.search(rf"\.{key}:\s+(\d+)", assembly) for name, key in keys.items()}
    return {name: int(match.group(1)) for name, match in found.items() if match}
