"""Faults that a GPU, or a sanitizer on one, would report."""


class Fault(RuntimeError):  # noqa: N818
    """An error of a kernel, or an instruction that this emulator does not know."""
