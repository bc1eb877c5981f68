"""NVIDIA's approximate instructions: correctly rounded, or off by what is documented.

``PTX_APPROX`` says which: "exact" (the default), or each result off by the greatest error that the
PTX manual allows: "up", "down", or "mixed", by the bits of the argument, as a table's errors are.
"""

import os

import numpy as np

from .arithmetic import flush
from .faults import Fault

APPROX = os.environ.get("PTX_APPROX", "exact")


def off_by(value, exact, size):
    """With an error of ``size`` (an array, as large as documented), of float64s, as float32."""
    if APPROX == "exact":
        return exact.astype(np.float32)
    if APPROX == "mixed":  # by the bits of what went in, as a table's are
        bits = value.view(np.uint32) * np.uint32(2654435761)
        sign = np.where(bits >> np.uint32(31), 1.0, -1.0)
    else:
        sign = 1.0 if APPROX == "up" else -1.0
    return (exact + sign * size).astype(np.float32)


def ulp(exact):
    with np.errstate(all="ignore"):
        return np.where(np.isfinite(exact), np.spacing(np.abs(exact).astype(np.float32)), 0.0)


def approximate(name, ftz, x, mask):
    """An approximate instruction of one float32, where the mask is."""
    x = flush(x) if ftz else x
    wide = x.astype(np.float64)
    if name == "ex2":  # 2 ulp
        exact = np.exp2(wide)
        found = off_by(x, exact, 2 * ulp(exact))
        found = np.where(x == 0, np.float32(1), found)
    elif name == "lg2":  # 2**-22, absolute in (1/2, 2), relative elsewhere
        exact = np.log2(wide)
        near = (wide > 0.5) & (wide < 2)
        size = np.where(near, 2.0**-22, np.abs(exact) * 2.0**-22)
        found = off_by(x, exact, np.where(np.isfinite(exact), size, 0.0))
    elif name in ("sin", "cos"):  # 2**-20.5 in [-2 pi, 2 pi]
        if np.any(
            (np.abs(wide) > 2 * np.pi) & np.isfinite(wide) & (True if mask is None else mask)
        ):
            raise Fault(f"{name}.approx beyond 2 pi, where its error is not bounded as assumed")
        exact = getattr(np, name)(wide)
        found = off_by(x, exact, 2.0**-20.5)
    elif name == "rcp":  # 1 ulp
        exact = 1.0 / wide
        found = off_by(x, exact, ulp(exact))
    elif name == "sqrt":  # 2**-23, relative
        exact = np.sqrt(wide)
        found = off_by(x, exact, np.where(np.isfinite(exact), exact * 2.0**-23, 0.0))
    elif name == "rsqrt":
        exact = 1.0 / np.sqrt(wide)
        found = off_by(x, exact, np.where(np.isfinite(exact), exact * 2.0**-22.9, 0.0))
    elif name == "tanh":
        exact = np.tanh(wide)
        found = off_by(x, exact, np.abs(exact) * 2.0**-11)
    else:
        raise Fault(f"{name}.approx is not known")
    return flush(found) if ftz else found


def full_quotient(a, b):
    """div.full.f32: 2 ulp."""
    exact = a.astype(np.float64) / b.astype(np.float64)
    return off_by(b, exact, 2 * ulp(exact))
