"""How numba compiles the kernels, and the few instructions that it has no names for."""

import hashlib
import operator
from types import FunctionType
from typing import Any

from llvmlite import ir
from numba import carray, config, extending, njit, types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.compiler import Compiler, Flags
from numba.core.dispatcher import Dispatcher

from .cache import Cache

Pipeline: Any
try:
    from .linking import Helper as Pipeline
except (ImportError, AttributeError):  # a numba with other names inside: twice the time to compile
    Pipeline = Compiler

# Private parts of numba that kernels are compiled with. Where one is gone, the import of this
# module fails, so that the backend is whole or absent.
for owner, names in {
    BaseContext: "add_linking_libs call_internal_no_propagate get_dummy_value make_array",
    Dispatcher: "get_compile_result",
    Flags: "forceinline no_cfunc_wrapper no_cpython_wrapper noalias",
    cgutils: "alloca_once_value unpack_tuple",
}.items():
    operator.attrgetter(*names.split())(owner)
if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set at import
    raise ImportError("NUMBA_DISABLE_JIT is set, with which numba compiles nothing")

# IEEE arithmetic, except that a * b + c may be one instruction. inf and NaN are kept.
OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract"},
    "no_cfunc_wrapper": True,
}
# Python calls kernels only. Other functions have no entry for it, which saves a seventh of
# compiling.
INTERNAL: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True}

# numba's annotations would have callers pass the typing context
intrinsic: Any = extending.intrinsic


def jit(**options):
    """numba's njit, for functions that have the name of what they close over in their own.

    Numba calls machine code by the name of a function and a count of the process that compiled it.
    Two functions that differ in their closure alone would get one name from two processes, and who
    loads both from disk would run the one for the other: a Laplace's terms for a Gaussian's.
    """

    def decorate(function):
        if function.__closure__:
            contents = ",".join(described(cell.cell_contents) for cell in function.__closure__)
            function.__qualname__ += "_" + hashlib.sha256(contents.encode()).hexdigest()[:16]
        return njit(**{"pipeline_class": Pipeline, **options})(function)

    return decorate


def described(value):
    """The key by which another process would know it."""
    function = getattr(value, "py_func", value)
    if isinstance(function, FunctionType):
        return f"{function.__module__}.{function.__qualname__}"
    if isinstance(function, (int, float, str)):
        return repr(function)
    raise TypeError(f"no name for {value!r}, which a kernel's function closes over")


LANES = 16  # float32 numbers in the widest register; buffers have as many to spare

# For functions that a kernel calls once per tile.
helper = jit(**INTERNAL)
# For functions that it calls once per element: LLVM does not vectorise a loop around a call.
inline = jit(forceinline=True, **INTERNAL)


def kernel(function, nogil=True):
    """Compile at the first call, or read the machine code from disk.

    What Python calls is ``share_out``, under the name and place of the function.
    """
    names = {"body": helper(function), "run_in_threads": run_in_threads, "unowned": unowned}
    place = {"co_name": function.__name__, "co_filename": function.__code__.co_filename}
    code = share_out.__code__.replace(co_firstlineno=function.__code__.co_firstlineno, **place)
    entry = FunctionType(code, names, function.__name__)
    entry.__module__, entry.__qualname__ = function.__module__, function.__qualname__
    dispatcher = njit(nogil=nogil, **OPTIONS)(entry)
    dispatcher._cache = Cache(entry)  # without effect in a numba that has another name for it
    return dispatcher


body: Any = None  # of each kernel its own


def share_out(openmp, threads, queue, *arguments):
    # A generator of numba never frees an array that it was given: 200 bytes per call leak, and more
    # where they separate freed blocks.
    arguments = (unowned(queue), *arguments)
    if threads > 1:
        run_in_threads(openmp, threads, body, arguments)
    else:
        body(*arguments)


@intrinsic
def run_in_threads(typing_context, openmp, threads, function, arguments):
    """``function(*arguments)`` in each of so many threads at once: GOMP_parallel, at ``openmp``."""
    signature = function.get_call_type(typing_context, tuple(arguments), {})
    compiled = function.dispatcher.get_compile_result(signature)

    def generate(context, builder, _, given):
        address, number, _, arguments = given
        context.add_linking_libs([compiled.library])
        data = cgutils.alloca_once_value(builder, arguments)
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        part = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), "take_part")
        part.linkage = "internal"
        inside = ir.IRBuilder(part.append_basic_block())
        values = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(part.args[0], data.type)))
        context.call_internal_no_propagate(inside, compiled.fndesc, signature, values)
        inside.ret_void()
        parallel = ir.FunctionType(ir.VoidType(), [part.type, byte, word, word])
        start = builder.inttoptr(address, parallel.as_pointer())
        builder.call(
            start, [part, builder.bitcast(data, byte), builder.trunc(number, word), word(0)]
        )
        return context.get_dummy_value()

    return types.none(openmp, threads, function, arguments), generate


class Restrict(Pipeline):
    """The same compiler, with all arguments ``noalias``."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return super().define_pipelines()


def elementwise(function):
    """A loop over flat arrays, none of which overlaps one that is written.

    LLVM cannot know that. It would compare the addresses of all pairs before the loop, and take a
    scalar loop where a tile is small.
    """
    return jit(pipeline_class=Restrict, **INTERNAL)(function)


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
    """a * b + c, rounded once wherever the processor can. LLVM alone may or may not do so."""

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
    """An address that came as a number, as ``carray`` takes it."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@inline
def unowned(array):
    """The same array without an owner, so that no references are counted."""
    return carray(pointer(array.ctypes.data), array.shape, array.dtype)


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
def copy_four(typing_context, source, start, array, place):
    """array[place : place + 4] = source[start : start + 4], in one instruction."""

    def generate(context, builder, signature, arguments):
        source, start, array, place = arguments
        four = ir.VectorType(context.get_value_type(signature.args[0].dtype), 4)
        align = context.get_abi_sizeof(four.element)

        def address(values, kind, index):
            data = context.make_array(kind)(context, builder, values).data
            return builder.bitcast(builder.gep(data, [index]), four.as_pointer())

        values = builder.load(address(source, signature.args[0], start), align=align)
        builder.store(values, address(array, signature.args[2], place), align=align)
        return context.get_dummy_value()

    return types.none(source, types.intp, array, types.intp), generate


@intrinsic
def fetch_add(typing_context, array, index, value):
    """Add ``value`` to array[index] atomically; returns what was there before."""

    def generate(context, builder, signature, arguments):
        array, index, value = arguments
        data = context.make_array(signature.args[0])(context, builder, array).data
        return builder.atomic_rmw("add", builder.gep(data, [index]), value, "seq_cst")

    return types.int64(array, types.intp, types.int64), generate
