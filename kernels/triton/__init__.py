"""The kernels in Triton: device functions, kernels and launchers, nothing else.

Each file has one family. Its launchers have the names and arguments of the ops. ``device`` and
``noise`` hold shared device functions, ``launch`` the host side.
"""
