"""The fused ops: ``ops`` declares each once, ``library`` registers it with torch.

Each backend is a subpackage, ``triton`` for GPUs and ``numba`` for CPUs, and has a record in
``backends``. Importing ``ops`` imports no backend. That happens when a kernel is first used.
"""
