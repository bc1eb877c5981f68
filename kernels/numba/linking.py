"""Functions that are compiled into kernels, and never by themselves.

For numba each function is a library of its own, which LLVM optimises and turns into machine code
that nobody calls: a kernel takes some seventy of them with it. Here LLVM sees a helper for the
first time as a part of the kernel, once.
"""

from llvmlite.binding import Linkage
from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NoPythonSupportedFeatureValidation,
)


class HelperLibrary(JITCodeLibrary):
    """The code of a helper, and the libraries of those whose code it calls."""

    def finalize(self):
        self._raise_if_finalized()
        self._finalized = True

    def _get_module_for_linking(self):
        """With the code of all that it calls, each of them once."""
        if self._shared_module is None:
            module = self._final_module.clone()
            for library in self.called():
                helper = isinstance(library, HelperLibrary)
                part = library._final_module if helper else library._get_module_for_linking()
                module.link_in(part, preserve=True)
            for function in module.functions:
                if not function.is_declaration and function.linkage == Linkage.external:
                    function.linkage = "linkonce_odr"
            self._shared_module = module
        return self._shared_module

    def called(self):
        """All libraries behind this one."""
        found, waiting = {self: None}, [self]
        for library in waiting:
            for behind in library._linking_libraries:
                if behind not in found:
                    found[behind] = None
                    if isinstance(behind, HelperLibrary):
                        waiting.append(behind)
        del found[self]
        return found


@register_pass(mutates_CFG=True, analysis_only=False)
class Link(NativeLowering):
    """Numba's own lowering, of what Python never calls."""

    _name = "link"

    def run_pass(self, state):
        super().run_pass(state)
        lowered, library = state["cr"], state.library
        name = lowered.fndesc.qualname
        module = lowered.fndesc.lookup_module()
        entry = _dynfunc.make_function(module, name, "", 0, lowered.env, (library,))
        state.targetctx.insert_user_function(entry, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


class Helper(CompilerBase):
    """Numba's compiler up to LLVM."""

    noalias = False

    def define_pipelines(self):
        state, builder = self.state, DefaultPassBuilder
        state.flags.noalias, state.flags.no_compile = self.noalias, True
        state.library = HelperLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        passes = PassManager("helper")
        passes.passes += builder.define_untyped_pipeline(state).passes
        passes.passes += builder.define_typed_pipeline(state).passes
        lowering = [
            NoPythonSupportedFeatureValidation,
            IRLegalization,
            AnnotateTypes,
            Link,
            NoPythonBackend,
        ]
        for step in lowering:
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


class Restricted(Helper):
    """With all arguments ``noalias``."""

    noalias = True
