"""Python text for each PTX instruction. What is not here is a fault."""

import re

import numpy as np

from .arithmetic import UNSIGNED, numpy_type
from .faults import Fault
from .memory_instructions import MemoryInstructions
from .operands import Operands

# The parts of an opcode that elementwise instructions may have; any other is a fault.
MODIFIERS = {"rn", "ftz", "lo", "hi", "wide", "NaN", "approx", "full", "sat", "l", "r", "wrap",
             "clamp"}  # fmt: skip


class Builder(Operands, MemoryInstructions):
    """Python text for the instructions of one kernel."""

    def instruction(self, predicate, opcode, operands):
        """Lines for an instruction. ``M`` is the mask of the threads that are here."""
        lines = self.body(opcode, operands)
        if predicate is not None:
            condition = self.read(predicate, "pred")
            if opcode.startswith("shfl"):
                self.unknown[f"predicated {opcode}"] += 1
            lines = [line.replace("put(M,", "put(both(M, P),") for line in lines]
            lines = [line.replace("(M, ", "(both(M, P), ", 1) if line.startswith("memory")
                     or " = memory." in line else line for line in lines]  # fmt: skip
            lines = [f"P = {condition}", *lines]
        return lines

    def body(self, opcode, operands):
        parts = opcode.split(".")
        name, kind = parts[0], parts[-1]
        method = getattr(self, f"op_{name}", None)
        if method is None:
            self.unknown[opcode] += 1
            return []
        try:
            lines = method(parts, kind, operands)
        except (Fault, KeyError, TypeError) as error:
            self.unknown[f"{opcode} {operands}: {error!r}"] += 1
            return []
        return [line for line in ([lines] if isinstance(lines, str) else lines) if line]

    # Each instruction has a method. It takes the opcode's parts, the last of them, the operands.

    def elementwise(self, parts, kind, operands, expression, sources=None):
        """``expression`` of a, b, c; halves, and pairs of numbers, in their own ways."""
        target, *given = operands
        if set(parts[1:-1]) - MODIFIERS:
            raise Fault("modifier")
        if len(set(re.findall(r"\b[abc]\b", expression))) != len(given):
            raise Fault("number of operands")
        pair = kind.endswith("x2")
        scalar = kind[:-2] if pair else kind
        if pair:
            width = 2 * np.dtype(numpy_type("b16" if scalar.startswith("bf") else scalar)).itemsize
            view = numpy_type("b16" if scalar.startswith("bf") else scalar).__name__
            values = [f"pair({self.read(o, f'b{8 * width}')}, {view})" for o in given]
        else:
            values = [self.read(o, k) for o, k in zip(given, sources or [kind] * 3, strict=False)]
        if scalar == "bf16":
            values = [f"from_bf16({v}).astype(float64)" for v in values]
        elif scalar == "f32" and "ftz" in parts:
            values = [f"flush({v})" for v in values]
        for name, value in zip("abc", values, strict=False):
            expression = re.sub(rf"\b{name}\b", lambda _, v=value: f"({v})", expression)
        if scalar == "bf16":
            expression = f"bf16_of_double({expression})"
        elif scalar == "f32" and "ftz" in parts:
            expression = f"flush({expression})"
        if "sat" in parts:
            if scalar != "f32":
                raise Fault("sat")
            expression = f"np.clip(np.nan_to_num({expression}, nan=0.0), float32(0), float32(1))"
        if pair:
            expression = f"unpair({expression}, {UNSIGNED[8 * width].__name__})"
            kind = f"b{8 * width}"
        return self.write(target, expression, kind)

    def rounding(self, parts):
        if {"rz", "rm", "rp"} & set(parts):
            raise Fault("a rounding that is not to nearest")

    def mixed(self, parts, kind, operands, expression):
        """add, sub and fma with halves, of which all but the last operand are, in float32."""
        if set(parts[1:-2]) - {"rn"}:
            raise Fault("modifier")
        halves = [self.read(o, kind) for o in operands[1:-1]]
        wide = [f"from_bf16({v})" if kind == "bf16" else f"({v}).astype(float32)" for v in halves]
        values = dict(zip("abc", [*wide, self.read(operands[-1], "f32")], strict=False))
        expression = re.sub(r"\b[abc]\b", lambda m: f"({values[m[0]]})", expression)
        return self.write(operands[0], expression, "f32")

    def op_add(self, parts, kind, operands):
        self.rounding(parts)
        if parts[-2] == "f32":
            return self.mixed(parts, kind, operands, "a + b")
        return self.elementwise(parts, kind, operands, "a + b")

    def op_sub(self, parts, kind, operands):
        self.rounding(parts)
        if parts[-2] == "f32":
            return self.mixed(parts, kind, operands, "a - b")
        return self.elementwise(parts, kind, operands, "a - b")

    def widened(self, kind):
        return f"{kind[0]}{2 * int(kind[1:])}"

    def op_mul(self, parts, kind, operands):
        self.rounding(parts)
        if "wide" in parts:
            wide = self.widened(kind)
            type_ = numpy_type(wide).__name__
            a, b = (f"{self.read(o, kind)}.astype({type_})" for o in operands[1:])
            return self.write(operands[0], f"{a} * {b}", wide)
        if "hi" in parts:
            return self.elementwise(parts, kind, operands, "high_product(a, b)")
        return self.elementwise(parts, kind, operands, "a * b")

    def op_mad(self, parts, kind, operands):
        if kind[0] == "f":
            return self.op_fma(parts, kind, operands)
        if "wide" in parts:
            wide = self.widened(kind)
            type_ = numpy_type(wide).__name__
            a, b = (f"{self.read(o, kind)}.astype({type_})" for o in operands[1:3])
            return self.write(operands[0], f"{a} * {b} + {self.read(operands[3], wide)}", wide)
        if "hi" in parts:
            return self.elementwise(parts, kind, operands, "high_product(a, b) + c")
        return self.elementwise(parts, kind, operands, "a * b + c")

    def op_fma(self, parts, kind, operands):
        self.rounding(parts)
        if parts[-2] == "f32":
            return self.mixed(parts, kind, operands, "FMA[32](a, b, c)")
        scalar = kind.removesuffix("x2")
        if scalar in ("f32", "f64"):
            return self.elementwise(parts, kind, operands, f"FMA[{scalar[1:]}](a, b, c)")
        if scalar == "f16":
            wide = "a.astype(float64) * b.astype(float64) + c.astype(float64)"
            return self.elementwise(parts, kind, operands, f"({wide}).astype(float16)")
        return self.elementwise(parts, kind, operands, "a * b + c")

    def op_div(self, parts, kind, operands):
        if kind == "f32" and ("full" in parts or "approx" in parts):
            return self.elementwise(parts, kind, operands, "full_quotient(a, b)")
        self.rounding(parts)
        if kind[0] == "f":
            return self.elementwise(parts, kind, operands, "a / b")
        return self.elementwise(parts, kind, operands, "quotient(a, b)")

    def op_rem(self, parts, kind, operands):
        return self.elementwise(parts, kind, operands, "remainder(a, b)")

    def op_neg(self, parts, kind, operands):
        if kind[0] == "f" or kind[0] == "b":
            return self.elementwise(parts, kind, operands, "-a")
        return self.elementwise(parts, kind, operands, "(0 - a)")

    def op_abs(self, parts, kind, operands):
        return self.elementwise(parts, kind, operands, "np.abs(a)")

    def extreme(self, parts, kind, operands, name, plain, propagating):
        which = plain if kind[0] not in "fb" else propagating if "NaN" in parts else name
        three = f"{which}({which}(a, b), c)"  # from sm_100 on
        return self.elementwise(
            parts, kind, operands, three if len(operands) == 4 else f"{which}(a, b)"
        )

    def op_min(self, parts, kind, operands):
        return self.extreme(parts, kind, operands, "smaller", "np.minimum", "np.minimum")

    def op_max(self, parts, kind, operands):
        return self.extreme(parts, kind, operands, "greater", "np.maximum", "np.maximum")

    def logical(self, parts, kind, operands, expression):
        if kind == "pred":
            values = [self.read(o, "pred") for o in operands[1:]]
            for name, value in zip("ab", values, strict=False):
                expression = re.sub(rf"\b{name}\b", lambda _, v=value: f"({v})", expression)
            return self.write(operands[0], expression, "pred")
        return self.elementwise(parts, kind, operands, expression)

    def op_and(self, parts, kind, operands):
        return self.logical(parts, kind, operands, "a & b")

    def op_or(self, parts, kind, operands):
        return self.logical(parts, kind, operands, "a | b")

    def op_xor(self, parts, kind, operands):
        return self.logical(parts, kind, operands, "a ^ b")

    def op_not(self, parts, kind, operands):
        return self.logical(parts, kind, operands, "~a")

    def op_shl(self, parts, kind, operands):
        sources = [kind, "u32"]
        return self.elementwise(parts, kind, operands, "shifted_left(a, b)", sources)

    def op_shr(self, parts, kind, operands):
        sources = [kind, "u32"]
        return self.elementwise(parts, kind, operands, "shifted_right(a, b)", sources)

    def op_bfe(self, parts, kind, operands):
        sources = [kind, "u32", "u32"]
        return self.elementwise(parts, kind, operands, "extracted(a, b, c)", sources)

    def op_prmt(self, parts, kind, operands):
        if len(parts) != 2:
            raise Fault("mode")
        return self.elementwise(parts, kind, operands, "permuted(a, b, c)")

    def op_lop3(self, parts, kind, operands):
        *operands, table = operands
        return self.elementwise(parts, kind, operands, f"looked_up(a, b, c, {int(table, 0)})")

    def op_shf(self, parts, kind, operands):
        how = f"{parts[1] == 'l'}, {parts[2] == 'wrap'}"
        return self.elementwise(parts, kind, operands, f"funnel(a, b, c, {how})")

    def op_popc(self, parts, kind, operands):
        value = f"np.bitwise_count({self.read(operands[1], kind)}).astype(uint32)"
        return self.write(operands[0], value, "u32")

    def op_selp(self, parts, kind, operands):
        target, a, b, p = operands
        value = f"np.where({self.read(p, 'pred')}, {self.read(a, kind)}, {self.read(b, kind)})"
        return self.write(target, value, kind)

    def op_setp(self, parts, kind, operands):
        how, target = parts[1], operands[0]
        combine = parts[2] if parts[2] in ("and", "or", "xor") else None
        if kind.endswith("x2"):
            scalar = kind[:-2]
            view = "uint16" if scalar == "bf16" else "float16"
            read = (lambda v: f"from_bf16({v})") if scalar == "bf16" else (lambda v: v)
            a, b = (read(f"pair({self.read(o, 'b32')}, {view})") for o in operands[1:3])
            if combine:
                raise Fault("combined pairs")
            both = f"C = compared({how!r}, {a}, {b})"
            first, second = target.split("|")
            return [
                both,
                self.write(first, "C[:, 0]", "pred"),
                self.write(second, "C[:, 1]", "pred"),
            ]
        a, b = (self.read(o, kind) for o in operands[1:3])
        if kind == "bf16":
            a, b = f"from_bf16({a})", f"from_bf16({b})"
        elif "ftz" in parts:
            a, b = f"flush({a})", f"flush({b})"
        first, _, second = target.partition("|")
        value = f"compared({how!r}, {a}, {b})"
        if combine:
            sign = {"and": "&", "or": "|", "xor": "^"}[combine]
            value = f"({value}) {sign} ({self.read(operands[3], 'pred')})"
        if second:
            raise Fault("two results")
        return self.write(first, value, "pred")

    def op_mov(self, parts, kind, operands):
        target, source = operands
        if kind == "pred":
            return self.write(target, self.read(source, "pred"), "pred")
        if target.startswith("{"):
            names = [n.strip() for n in target[1:-1].split(",")]
            bits = int(kind[1:]) // len(names)
            part = UNSIGNED[bits].__name__
            lines = [f"V = {self.read(source, kind)}"]
            for i, name in enumerate(names):
                value = f"(V >> {UNSIGNED[int(kind[1:])].__name__}({i * bits})).astype({part})"
                lines.append(self.write(name, value, f"b{bits}"))
            return lines
        if source.startswith("{"):
            names = [n.strip() for n in source[1:-1].split(",")]
            bits, whole = int(kind[1:]) // len(names), UNSIGNED[int(kind[1:])].__name__
            values = [f"({self.read(n, f'b{bits}')}.astype({whole}) << {whole}({i * bits}))"
                      for i, n in enumerate(names)]  # fmt: skip
            return self.write(target, " | ".join(values), kind)
        return self.write(target, self.read(source, kind), kind)

    def op_cvta(self, parts, kind, operands):
        return self.write(operands[0], self.read(operands[1], kind), kind)

    def op_cvt(self, parts, kind, operands):
        to, of = parts[-2], parts[-1]
        modes = set(parts[1:-2])
        if modes - {"rn", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "rz"} or "sat" in modes:
            raise Fault("mode")
        if to in ("bf16x2", "f16x2"):
            a, b = (self.read(o, "f32") for o in operands[1:])
            narrow = "to_bf16" if to == "bf16x2" else "half"
            value = f"({narrow}({a}).astype(uint32) << uint32(16)) | {narrow}({b}).astype(uint32)"
            return self.write(operands[0], value, "b32")
        value = self.read(operands[1], of)
        if of == "bf16":
            value = f"from_bf16({value})"
        elif of == "f32" and "ftz" in modes:
            value = f"flush({value})"
        whole = next((m for m in modes if m in ("rni", "rzi", "rmi", "rpi")), None)
        if to == "bf16":
            if of == "f64":
                value = f"bf16_of_double({value})"
            elif of in ("f32", "bf16", "f16"):
                value = f"to_bf16({value}.astype(float32))"
            else:
                raise Fault("to bf16")
        elif to[0] == "f":
            if "rz" in modes:
                raise Fault("rz")
            if whole:
                how = {"rni": "rint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[whole]
                value = f"np.{how}({value})"
            value = f"({value}).astype({numpy_type(to).__name__})"
            if to == "f32" and "ftz" in modes:
                value = f"flush({value})"
        elif of[0] == "f" or of == "bf16":
            value = f"rounded_to({value}, {whole!r}, {numpy_type(to).__name__})"
        else:
            value = f"({value}).astype({numpy_type(to).__name__})"
        return self.write(operands[0], value, to)

    def unary(self, parts, kind, operands):
        if kind == "f32" and "approx" in parts:
            given = f"{parts[0]!r}, {'ftz' in parts}, {self.read(operands[1], kind)}"
            value = f"approximate({given}, M)"
            return self.write(operands[0], value, kind)
        if kind == "f64" and parts[0] == "rcp" and "approx" in parts:
            return self.write(
                operands[0], f"gross_reciprocal({self.read(operands[1], kind)})", kind
            )
        self.rounding(parts)
        expression = {
            "sqrt": "np.sqrt(a)",
            "rcp": f"float{kind[1:]}(1) / a",
            "rsqrt": "1 / np.sqrt(a)",
        }[parts[0]]
        return self.elementwise(parts, kind, operands, expression)

    op_ex2 = op_lg2 = op_sin = op_cos = op_rcp = op_sqrt = op_rsqrt = op_tanh = unary
