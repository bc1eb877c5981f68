"""The estimators: equations, reference, public functions, bounds and exact models.

``textbook`` holds the equations; ``reference`` the twins of the kernels built on them, ``noise``
the kernels' noise stream, and ``twins`` the ops themselves in PyTorch. ``functional``, ``loss`` and
``iwae`` are the public operations: they check their arguments (``validate``), and ``dispatch``
chooses kernel or twin.
``bounds`` are the estimators of bounds and their gradients, with ``sampling``, ``diagnostics`` and
``evaluation``; ``models`` have exact evidence to judge them by; ``schedule`` is for the KL's
weight; ``compat`` and ``distributions`` stand in for other people's code.
"""
