"""The losses of well-known VAE code, as their users have them, and what replaces them.

Both take the same tensors and return the loss that is differentiated, forward + backward alone.
Distributions are part of it where a model makes them anyway. They check their arguments, as
torch's default has it; where torch.compile is at work they do not, as its default has it. A
dictionary or tuple that a loss returns is made on either side, but the compiler leaves out what
of it nobody reads. Exact answers are the equations of papers or documentation.

A block a loss, under its name in fused_elbo.compat; the original is "eager".
"""

from . import deep, pyro_step, scvi, tcvae, vae

# Pyro is last: importing it changes what the others run under.
ENTRIES = vae.ENTRIES | tcvae.ENTRIES | deep.ENTRIES | scvi.ENTRIES | pyro_step.ENTRIES
