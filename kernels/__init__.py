"""Triton kernels, their launchers and their torch.library ops.

Nothing here is imported until a kernel is used: ``import fused_elbo`` works, and is
quick, on machines without Triton. One kernel family a file; ``device.py`` and
``noise.py`` hold the device functions they share, ``launch.py`` the host side.
"""
