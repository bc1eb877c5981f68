"""Drop-ins for other people's losses: a module for each project.

Each keeps its original's argument names, order, reductions, signs and return type, oddities
included: the same number and gradients for one changed line. On CUDA and CPU tensors they run the
fused kernels; elsewhere, and with the one extra argument ``impl="reference"``, torch's own losses
and the reference. ``terms`` holds what several share, ``effective_beta`` says which beta a loss
amounts to.
"""
