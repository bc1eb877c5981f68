"""Compiled PTX executed on a CPU: what a GPU would run, without one.

``driver`` makes Triton launch here. ``parser``, ``instructions``, ``arithmetic`` and
``approximations`` make a ``program`` of a kernel's PTX. ``launch`` runs it on ``memory`` and raises
a ``Fault`` for whatever a GPU, or a sanitizer on one, would not let pass. It cannot see what ptxas
fuses beyond PTX's own fused instructions, more than three orders of memory operations, and time.
"""
