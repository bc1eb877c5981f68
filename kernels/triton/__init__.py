"""The kernels in Triton: device functions, kernels and launchers, nothing else.

One family a file, whose launchers have the names and arguments of the ops. ``device`` and
``noise`` hold the device functions that they share, ``launch`` the host side.
"""
