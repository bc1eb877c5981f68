"""How numba compiles the kernels, and the few instructions that it has no names for."""

import hashlib
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import extending, njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder

# IEEE arithmetic, but for a * b + c in one instruction: inf and NaN stay what they are.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,
}
# Python calls kernels alone: others do without a way in, which saves a seventh of compiling.
INTERNAL: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True}

# numba's annotations would have callers pass the typing context
intrinsic: Any = extending.intrinsic
LANES = 16  # float32 numbers in the widest register; buffers have as many to spare

# What a kernel calls for a tile.
helper = njit(**INTERNAL)
# What it calls for an element: LLVM does not vectorise a loop around a call.
inline = njit(forceinline=True, **INTERNAL)

# Numba itself asks only whether the file of the kernel has changed, not those it imports.
SOURCES = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def kernel(function):
    """Compile at the first call; keep the machine code on disk where a folder is writable."""
    try:
        dispatcher = njit(cache=True, nogil=True, **OPTIONS)(function)
    except RuntimeError:  # there is none: numba#4908
        return njit(nogil=True, **OPTIONS)(function)
    dispatcher._cache._cache_file._source_stamp = SOURCES
    return dispatcher


class Restrict(CompilerBase):
    """Numba's compiler, with all arguments ``noalias``."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


def elementwise(function):
    """A loop over flat arrays, none of which overlaps one that is written.

    LLVM cannot know that: it would compare the addresses of all pairs before the loop, and where
    a tile is small take a scalar one instead. rsample_log_ratio's backward of 256 samples at
    4 x 16 takes 39 us, and 66 so.
    """
    return njit(pipeline_class=Restrict, **INTERNAL)(function)


def polynomial(*coefficients):
    """x -> coefficients[0] + coefficients[1] x + ..., by Horner's rule in the type of x."""

    @intrinsic
    def evaluate(typing_context, x):
        def generate(context, builder, signature, arguments):
            (x,) = arguments
            *rest, total = (ir.Constant(x.type, c) for c in coefficients)
            for coefficient in reversed(rest):
                product = builder.fmul(total, x, flags=("contract",))
                total = builder.fadd(product, coefficient, flags=("contract",))
            return total

        return x(x), generate

    return evaluate


@intrinsic
def multiply_add(typing_context, a, b, c):
    """a * b + c, rounded once wherever the processor can: by itself LLVM does that or does not."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        signature = ir.FunctionType(kind, [kind] * 3)
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], signature)
        return builder.call(function, arguments)

    return a(a, b, c), generate


@intrinsic
def float_of_bits(typing_context, bits):
    """The float32 of 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of_float(typing_context, value):
    """The 32 bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def pointer(typing_context, address):
    """What ``carray`` takes, of an address that came as a number."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def store_lanes(typing_context, array, start, value):
    """array[start : start + LANES] = value, in one instruction."""

    def generate(context, builder, signature, arguments):
        array, start, value = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        lanes = ir.VectorType(value.type, LANES)
        first = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        splat = builder.shuffle_vector(first, first, order)
        where = builder.bitcast(builder.gep(data, [start]), lanes.as_pointer())
        builder.store(splat, where, align=context.get_abi_sizeof(value.type))
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), generate


@intrinsic
def fetch_add(typing_context, array, index, value):
    """What array[index] was before ``value`` is added, as one step for all threads."""

    def generate(context, builder, signature, arguments):
        array, index, value = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        return builder.atomic_rmw("add", builder.gep(data, [index]), value, "seq_cst")

    return types.int64(array, types.intp, types.int64), generate
