"""The estimators: public operations, bounds, exact models, drop-ins.

``functional`` (Gaussians), ``likelihoods``, ``importance``, ``mixtures``, ``hierarchical``,
``discretized`` and ``loss`` are the public operations: they check their arguments and hand them to
``dispatch``, which chooses a kernel or the ``reference``.
``bounds`` are the estimators of bounds and their gradients, with ``sampling``, ``diagnostics`` and
``evaluation``; ``models`` have exact evidence to judge them by; ``schedule`` is for the KL's
weight; ``noise`` is what the kernels draw; ``compat`` and ``distributions`` stand in for other
people's code.
"""
