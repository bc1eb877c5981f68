"""The launches that are compiled: every kernel, as its launcher launches it on large problems.

Each family of kernels has a module with a function ``cases``. To add a kernel, add a StaticCase to
the list of its family.
"""

from fused_elbo.kernels.triton.launch import recording

from . import gaussians, likelihoods, losses, pairs, posteriors, samples
from .operands import Operands

FAMILIES = (gaussians, samples, posteriors, likelihoods, pairs, losses)


def cases(dtype, cols):
    """All StaticCases of a dtype and row length."""
    operands = Operands(dtype, cols)
    return [case for family in FAMILIES for case in family.cases(operands)]


def record(call):
    """The last launch that ``call`` makes: (kernel, arguments, constexprs). Nothing runs."""
    with recording() as launches:
        call()
    kernel, _, arguments, constexprs = launches[-1]
    return kernel, arguments, constexprs
