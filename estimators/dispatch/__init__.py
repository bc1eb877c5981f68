"""From checked arguments to a kernel or to the reference; private.

``validate`` checks arguments, ``choice`` decides by ``impl`` and the tensors, and ``layouts`` gives
them the shapes that kernels take. The modules ``*_calls`` have a function for each operation, by
topic; ``masks`` is for the likelihoods, and ``twins`` has the ops once more in PyTorch.
``likelihoods`` has a record for each likelihood, and ``types`` the words that arguments may be.
These modules alone import kernels.
"""

from . import twins as twins
