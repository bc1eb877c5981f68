"""A count of the copies that torch makes behind our backs."""

from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """The shapes of the copies that are made inside, ``reshape``'s and ``contiguous``'s among them.

    >>> with Copies() as copies:
    ...     torch.ones(2, 3).t().reshape(6)
    >>> copies.shapes
    [(3, 2)]
    """

    COPIES = ("clone", "copy_", "_to_copy", "contiguous")

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function.overloadpacket.__name__ in self.COPIES:
            self.shapes.append(tuple(result.shape))
        return result
