"""The estimators: textbook equations, the PyTorch reference, and the public functions.

``textbook`` holds the equations; ``reference`` the twins of the kernels built on them;
``functional`` and ``loss`` check arguments and choose between twin and kernel.
"""
