"""From checked arguments to a kernel or to the reference; private.

``validate`` checks arguments, ``choice`` decides by ``impl`` and the tensors, ``layouts`` gives
them the shapes that kernels take, and ``calls`` has a function for each operation.
``likelihoods`` has a record for each likelihood, and ``types`` the words that arguments may be.
These modules alone import kernels.
"""
