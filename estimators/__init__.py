"""The estimators: equations, reference, public functions, bounds and exact models.

``textbook`` holds the equations; ``reference`` the twins of the kernels built on them, and
``noise`` the kernels' noise stream; ``functional`` and ``loss`` check arguments (``validate``) and
choose between twin and kernel. ``bounds`` are the estimators of bounds and their gradients, with
``sampling``, ``diagnostics`` and ``evaluation``; ``models`` have exact evidence to judge them by;
``schedule`` is for the KL's weight.
"""
