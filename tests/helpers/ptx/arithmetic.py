"""PTX's numbers in numpy: integers, floats of 16, 32 and 64 bits, and conversions, bit for bit."""

import re

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic


def fma_of(bits):
    """llvm.fma, which rounds once."""

    @intrinsic
    def fused(context, a, b, c):
        def codegen(_, builder, signature, arguments):
            kind = arguments[0].type
            name = f"llvm.fma.f{bits}"
            function = builder.module.globals.get(name)
            if function is None:
                from llvmlite import ir

                function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
            return builder.call(function, arguments)

        return a(a, b, c), codegen

    kind = getattr(types, f"float{bits}")

    @numba.vectorize([kind(kind, kind, kind)])
    def fma(a, b, c):
        return fused(a, b, c)

    return fma


FMA = {32: fma_of(32), 64: fma_of(64)}

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOATS = {16: np.float16, 32: np.float32, 64: np.float64}
TINY = np.float32(2.0**-126)


def numpy_type(name):
    bits = int(re.search(r"\d+", name)[0])
    return {"s": SIGNED, "f": FLOATS}.get(name[0], UNSIGNED)[bits]


def from_bf16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(value):
    """From float32, to nearest even."""
    bits = np.asarray(value, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def bf16_of_double(value):
    """To nearest even, once: by way of float32, rounded to odd."""
    narrow = value.astype(np.float32)
    bits = narrow.view(np.uint32)
    wide = narrow.astype(np.float64)
    away = np.abs(wide) > np.abs(value)
    toward_zero = np.where(away, bits - np.uint32(1), bits)
    odd = np.where((wide != value) & np.isfinite(narrow), toward_zero | np.uint32(1), bits)
    return to_bf16(odd.astype(np.uint32).view(np.float32))


def flush(x):
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


def smaller(a, b):
    """min of numbers, a NaN only if both are; -0 is below 0."""
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), a, b), np.fmin(a, b))


def greater(a, b):
    return np.where((a == 0) & (b == 0), np.where(np.signbit(a), b, a), np.fmax(a, b))


def shifted_left(a, count):
    return np.where(count < a.dtype.itemsize * 8, a << count.astype(a.dtype), a.dtype.type(0))


def shifted_right(a, count):
    most = a.dtype.itemsize * 8 - 1
    if a.dtype.kind == "i":
        return a >> np.minimum(count, most).astype(a.dtype)
    return np.where(count <= most, a >> np.minimum(count, most).astype(a.dtype), a.dtype.type(0))


def high_product(a, b):
    if a.dtype.itemsize == 8:
        x, y = a.astype(object), b.astype(object)
        return ((x * y) >> 64).astype(a.dtype)
    wide = np.int64 if a.dtype.kind == "i" else np.uint64
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def quotient(a, b):
    """Toward zero; of zero all ones, which is what GPUs have."""
    zero = b == 0
    safe = np.where(zero, a.dtype.type(1), b)
    if a.dtype.kind == "u":
        return np.where(zero, a.dtype.type(np.iinfo(a.dtype).max), a // safe)
    found = np.where((a < 0) != (safe < 0), -(np.abs(a) // np.abs(safe)), np.abs(a) // np.abs(safe))
    return np.where(zero, a.dtype.type(-1), found).astype(a.dtype)


def remainder(a, b):
    return a - quotient(a, b) * b


def extracted(a, start, length):
    """bfe, of whatever sign a has."""
    bits = a.dtype.itemsize * 8
    start, length = (start & np.uint32(255)).astype(np.int64), (length & 255).astype(np.int64)
    wide = a.view(UNSIGNED[bits]).astype(np.uint64) >> np.minimum(start, 63).astype(np.uint64)
    mask = np.where(length >= bits, -1, (np.int64(1) << np.minimum(length, bits - 1)) - 1)
    found = wide.astype(np.int64) & mask
    if a.dtype.kind == "i":
        top = np.minimum(start + length - 1, bits - 1)
        sign = (a.astype(np.int64) >> top) & 1
        found = np.where((length > 0) & (sign == 1), found | ~mask, found)
    return found.astype(a.dtype)


def rounded_to(value, kind, target):
    """cvt from a float to an integer: to nearest, up, down or to zero; saturated, 0 of NaN."""
    how = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[kind]
    found, limits = how(value.astype(np.float64)), np.iinfo(target)
    clipped = np.clip(found, float(limits.min), float(limits.max))
    with np.errstate(all="ignore"):
        whole = np.where(np.isnan(found), 0.0, clipped).astype(target)
    return np.where(found >= float(limits.max), limits.max, whole).astype(target)


def gross_reciprocal(x):
    """rcp.approx.ftz.f64 looks at and has the upper 32 bits alone."""
    upper = np.uint64(0xFFFFFFFF00000000)
    coarse = (x.view(np.uint64) & upper).view(np.float64)
    coarse = np.where(np.abs(coarse) < 2.0**-1022, np.copysign(0.0, coarse), coarse)
    return ((1.0 / coarse).view(np.uint64) & upper).view(np.float64)


def permuted(a, b, selector):
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    out = np.zeros(np.broadcast(both, selector).shape, np.uint32)
    for i in range(4):
        pick = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> ((pick & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        byte = np.where(pick & np.uint32(8), sign, byte)
        out |= byte.astype(np.uint32) << np.uint32(8 * i)
    return out


def looked_up(a, b, c, table):
    """lop3: the table has a bit for each combination."""
    found = np.zeros(1, a.dtype)
    for i in range(8):
        if table >> i & 1:
            x, y, z = (v if i >> s & 1 else ~v for v, s in ((a, 2), (b, 1), (c, 0)))
            found = found | (x & y & z)
    return found


def funnel(low, high, count, left, wrap):
    count = (count & np.uint32(31)) if wrap else np.minimum(count, np.uint32(32))
    both, count = (high.astype(object) << 32) | low.astype(object), count.astype(object)
    found = (both << count) >> 32 if left else both >> count
    return (found & 0xFFFFFFFF).astype(np.uint32)


def compared(how, a, b):
    if a.dtype.kind == "f":
        if how in ("num", "nan"):
            nan = np.isnan(a) | np.isnan(b)
            return nan if how == "nan" else ~nan
        found, nan = FUNCTIONS[how[:2]](a, b), np.isnan(a) | np.isnan(b)
        return found | nan if how.endswith("u") else found & ~nan
    return FUNCTIONS[how](a, b)


FUNCTIONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
             "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
             "hi": np.greater, "hs": np.greater_equal}  # fmt: skip


def pair(value, type_):
    return np.ascontiguousarray(value).view(type_).reshape(-1, 2)


def unpair(value, type_):
    return np.ascontiguousarray(value).view(type_).reshape(-1)


def half(value):
    return value.astype(np.float16).view(np.uint16)
