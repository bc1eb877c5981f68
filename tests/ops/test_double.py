"""The elementary functions of the CPU kernels in float64, against mpmath."""

import math

import mpmath
import numba
import numpy as np
import pytest

from fused_elbo.kernels.numba import double

pytestmark = [pytest.mark.kernels, pytest.mark.numba]
RANGES = {
    "exp": [(-745, 709.7), (-1, 1), (-1e-8, 1e-8)],
    "exp_normal": [(-708, 709.7), (-1, 1)],
    "exp2": [(-1020, 1022), (-1, 1)],
    "expm1": [(-50, 709.7), (-1, 1), (-1e-8, 1e-8)],
    "expm1_minus_x": [(-50, 709.7), (-1, 1), (-1e-8, 1e-8)],
    "log1p": [(-0.5, 1), (-1e-8, 1e-8)],
    "log": [(1e-3, 1e3), (0.5, 2), (1e-320, 1e-305), (1e300, 1e308)],
}
EXACT = {
    "exp": mpmath.exp,
    "exp_normal": mpmath.exp,
    "exp2": lambda x: mpmath.mpf(2) ** x,
    "expm1": mpmath.expm1,
    "expm1_minus_x": lambda x: mpmath.expm1(x) - x,
    "log1p": mpmath.log1p,
    "log": mpmath.log,
}
# At the ends of what is asked of each: x, and what comes of it.
EDGES = {
    "exp": {-math.inf: 0.0, -800.0: 0.0, 0.0: 1.0, 710.0: math.inf, math.inf: math.inf},
    "exp2": {-math.inf: 0.0, 0.0: 1.0, 10.0: 1024.0},
    "expm1": {-math.inf: -1.0, 0.0: 0.0, 800.0: math.inf, math.inf: math.inf},
    "expm1_minus_x": {-math.inf: math.inf, 0.0: 0.0, 800.0: math.inf},
    "log": {0.0: -math.inf, 1.0: 0.0, -1.0: math.nan, math.inf: math.inf},
    "log1p": {0.0: 0.0},
}


def in_loop(name):
    function = getattr(double, name)

    @numba.njit
    def run(x):
        result = np.empty_like(x)
        for i in range(x.size):
            result[i] = function(x[i])
        return result

    return run


@pytest.mark.parametrize("name", RANGES)
def test_to_a_few_units_in_the_last_place(name):
    run, rng = in_loop(name), np.random.default_rng(0)
    for low, high in RANGES[name]:
        x = rng.uniform(low, high, 1000)
        with mpmath.workdps(60):
            exact = [EXACT[name](mpmath.mpf(value)) for value in x]
            errors = [abs(mpmath.mpf(f) - e) for f, e in zip(run(x), exact, strict=True)]
        units = [
            float(error) / np.spacing(abs(float(e))) for error, e in zip(errors, exact, strict=True)
        ]
        assert max(units) <= (6 if name == "expm1_minus_x" else 2), (low, high)


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    x = np.array([*EDGES[name], math.nan])
    np.testing.assert_array_equal(in_loop(name)(x), [*EDGES[name].values(), math.nan])
