"""The kernels' noise stream, for users: :func:`stream` says what a kernel drew."""

from .reference.noise import stream

__all__ = ["stream"]
