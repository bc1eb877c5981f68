"""The byte models: what an operation must move between memory and the processor, at least.

Every input is read once and every output written once, as in the speed contract; nothing
in between touches memory. No provider can be faster than these bytes at the speed of a
copy, once the data is larger than the caches.
"""

from typing import NamedTuple

from .cases import EVENTS

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


class Floor(NamedTuple):
    """Full-size tensors read and written, and numbers per row of 4 bytes (float32 sums).

    forward: inputs + outputs. backward: upstream gradient and inputs again + gradients. ``columns``
    are inputs with one number per column.
    """

    forward: int
    backward: int
    forward_rows: int = 1
    backward_rows: int = 1
    columns: int = 0

    def element_bytes(self, direction, dtype="float32"):
        """Bytes per element of the full-size tensors, as the speed contract counts.

        >>> floor = Floor(3, 5)
        >>> floor.element_bytes("forward"), floor.element_bytes("forward+backward")
        (12, 32)
        """
        backward = self.backward if direction == "forward+backward" else 0
        return (self.forward + backward) * ITEM[dtype]

    def elements(self, case):
        """Bytes of the full-size tensors of a case."""
        return self.element_bytes(case.direction, case.dtype) * case.batch * case.latent

    def __call__(self, case):
        rows = self.forward_rows + (self.backward_rows if case.backward else 0)
        columns = self.columns * (3 if case.backward else 1)  # read, read again, gradient written
        by_column = columns * ITEM[case.dtype] * case.latent
        return self.elements(case) + 4 * rows * case.batch + by_column


KL = Floor(2, 4)  # mu, logvar | mu, logvar -> dmu, dlogvar
SAMPLE_KL = Floor(3, 5)  # mu, logvar -> z | dz, mu, logvar -> dmu, dlogvar


def loss_pixels(case):
    """Bytes of a loss over all pixels: recon and x, and for training drecon.

    The gradient of a loss is one scalar, so that recon's is written in the forward pass.
    """
    return (3 if case.backward else 2) * ITEM[case.dtype] * case.batch * EVENTS
