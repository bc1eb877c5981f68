"""The fused ops. ``ops`` declares each once, ``library`` makes it known to torch, and a folder a
backend has the kernels: ``triton`` for GPUs.

Importing ``ops`` imports no backend; that happens when a kernel is first used.
"""
