"""The operations in plain PyTorch; private.

``textbook`` holds the equations. ``reference`` has them with the contracts of the public
operations, ``on_rows`` with those of the ops in kernels, and ``noise`` is the kernels' noise
stream.
"""
