"""Functions that are compiled into kernels, and never on their own.

For numba each function is a library of its own, which LLVM optimises and turns into machine code
that nobody calls: a kernel takes some seventy of them with it, and with them twice the time. Here
LLVM optimises a helper as a part of the kernel alone.
"""

import operator
from typing import Any

from llvmlite.binding import Linkage
from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.base import BaseContext
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.registry import cpu_target
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NoPythonSupportedFeatureValidation,
)


class HelperLibrary(JITCodeLibrary):
    """The code of a helper, and the libraries of those whose code it calls.

    It stays a function in the kernel, unless it was to be inlined: a loop is packed by itself, with
    what LLVM knows of its arguments, and ``load`` is there once and not as often as it is called.
    """

    def add_ir_module(self, ir_module):
        for function in ir_module.functions:
            if function.blocks and "alwaysinline" not in function.attributes:
                function.attributes.add("noinline")
        super().add_ir_module(ir_module)

    def finalize(self):
        self._raise_if_finalized()
        self._finalized = True

    def _get_module_for_linking(self):
        """The code with that of all functions that it calls, each of them once."""
        if self._shared_module is None:
            module = self._final_module.clone()
            for library in self.called():
                own = isinstance(library, HelperLibrary)
                part = library._final_module if own else library._get_module_for_linking()
                module.link_in(part, preserve=True)
            for function in module.functions:
                if not function.is_declaration and function.linkage == Linkage.external:
                    function.linkage = "linkonce_odr"
            self._shared_module = module
        return self._shared_module

    def called(self):
        """The libraries of all functions that may run in a call."""
        found: dict[Any, Any] = {}
        waiting = [self]
        for library in waiting:
            for behind in library._linking_libraries:
                if behind not in found and behind is not self:
                    found[behind] = None
                    if isinstance(behind, HelperLibrary):
                        waiting.append(behind)
        return found


@register_pass(mutates_CFG=True, analysis_only=False)
class Link(NativeLowering):
    """numba's own lowering, for functions that Python never calls."""

    _name = "link"

    def run_pass(self, state):
        super().run_pass(state)
        lowered, library = state["cr"], state.library
        described = lowered.fndesc
        # Callers find the code by the name of a function that is empty otherwise.
        entry = _dynfunc.make_function(
            described.lookup_module(), described.qualname, "", 0, lowered.env, (library,)
        )
        state.targetctx.insert_user_function(entry, described, [library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


class Helper(CompilerBase):
    """numba's compiler without its last step, the machine code."""

    def define_pipelines(self):
        state, builder = self.state, DefaultPassBuilder
        state.flags.no_compile = True
        state.library = HelperLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        passes = PassManager("helper")
        passes.passes += builder.define_untyped_pipeline(state).passes
        passes.passes += builder.define_typed_pipeline(state).passes
        passes.add_pass(NoPythonSupportedFeatureValidation, "is all of it supported")
        passes.add_pass(IRLegalization, "make it legal")
        passes.add_pass(AnnotateTypes, "annotate types")
        passes.add_pass(Link, "lower, but do not compile")
        passes.add_pass(NoPythonBackend, "collect the results")
        passes.finalize()
        return [passes]


# Private parts of numba that this module needs. Where one is gone, its import fails, and numba's
# own compiler serves.
for owner, names in {
    BaseContext: "insert_user_function",
    DefaultPassBuilder: "define_typed_pipeline define_untyped_pipeline",
    Flags: "no_compile",
}.items():
    operator.attrgetter(*names.split())(owner)
probe = HelperLibrary(cpu_target.target_context.codegen(), "probe")
probe.add_ir_module(probe.create_ir_module("probe"))
probe.finalize()
probe._get_module_for_linking()
