"""Drop-ins for the losses of other projects: one module per project.

Each keeps the argument names, order, reductions, signs and return type of its original, oddities
included. One changed line gives the same number and gradients. On CUDA and CPU tensors they run the
fused kernels; elsewhere, and with the one extra argument ``impl="reference"``, torch's own losses
and the reference. ``terms`` has what several share. ``effective_beta`` computes the beta of a loss.
"""
