"""How numba compiles the kernels, and the few instructions that it has no names for."""

from llvmlite import ir
from numba import njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import intrinsic

# IEEE arithmetic, but for a * b + c in one instruction: inf and NaN stay what they are.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}

# A function of numbers. Without its body LLVM cannot vectorise the loop around it.
inline = njit(forceinline=True, **OPTIONS)


def kernel(function):
    """Compile at the first call; keep the machine code on disk where a folder is writable."""
    try:
        return njit(cache=True, nogil=True, **OPTIONS)(function)
    except RuntimeError:  # there is none: numba#4908
        return njit(nogil=True, **OPTIONS)(function)


class Restrict(CompilerBase):
    """Numba's compiler, with all arguments ``noalias``."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


def elementwise(function):
    """A loop over flat arrays, none of which overlaps one that is written.

    LLVM cannot know that, and gives up where more than eight pairs would have to be compared: a
    loop with two outputs and four inputs stays scalar, at five times the cost.
    """
    return njit(pipeline_class=Restrict, **OPTIONS)(function)


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
