"""The ops for CPUs, in numba: launchers under the names, and with the arguments, of the ops.

Nothing here is imported until a CPU tensor meets a kernel, and each kernel is compiled at its
first call. One family a file; ``device.py`` and ``noise.py`` hold the functions of numbers they
share, ``memory.py`` how a kernel reaches its tensors, ``launch.py`` the threads, and
``compiler.py`` what numba is asked for.
"""
