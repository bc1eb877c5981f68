"""What a GPU, or a sanitizer on one, would not let pass."""


class Fault(RuntimeError):
    """An error of a kernel, or an instruction that this emulator does not know."""
