"""The sweep of the quality suite: estimators, samples, distances of q, latent dimensions.

Torch-free: the charts read it too.

A *distance* d moves q away from the best diagonal Gaussian: the means by |d| posterior
standard deviations times a fixed normal draw, every log variance by d. So the sign says where
q went: narrower than the posterior (d < 0, as a q that was trained on an ELBO tends to be) or
wider (d > 0). At d = 0 a gap is left, for the posterior is not diagonal.
"""

from typing import NamedTuple

from .entries import ENTRIES

PARTS = ("model", "encoder")  # whose gradients are looked at
BATCH = 64  # examples in the call that is timed
EXAMPLES = 4  # distinct ones; their gradients are told apart
BLOCKS = 32  # of replicates: what the bootstrap draws from
# Where the slopes are fitted. Wider than the posterior, as Rainforth et al.'s q is: the weights
# have a finite variance, which the laws assume.
SLOPE_DISTANCE = 0.5


class Grid(NamedTuple):
    """The cells of a sweep, and how much of each is computed."""

    samples: tuple
    distances: tuple
    latents: tuple
    # Elements, K x examples x (latents + pixels), of all replicates of a case, and the fewest
    # and most replicates: fixed numbers, so that the same seeds give the same figures anywhere.
    work: int
    replicates: tuple
    seconds: float  # of timing per case
    rounds: tuple
    between: tuple = ()  # more K for the fitted slopes


GRIDS = {
    "smoke": Grid((1, 4, 16), (SLOPE_DISTANCE,), (2,), 2**17, (64, 256), 0.003, (3, 5)),
    # Seeds are fixed: values and gradients are the same on every machine, and only times differ.
    "default": Grid(
        (1, 16, 64), (SLOPE_DISTANCE,), (4,), 2**20, (256, 2048), 0.01, (7, 15),
    ),
    "full": Grid(
        (1, 4, 16, 64, 256), (-1.0, 0.0, SLOPE_DISTANCE, 1.0), (4, 16),
        2**20, (256, 2048), 0.01, (7, 15), (32, 128),
    ),
}  # fmt: skip


def case_id(estimator, samples, distance, latent):
    """
    >>> case_id("iwae", 16, 0.5, 4)
    'quality-iwae-K16-q+0.5-D4'
    """
    return f"quality-{estimator}-K{samples}-q{distance:+g}-D{latent}"


def sweep(grid):
    """(estimator, K, distance, latent), the estimators of a cell in a row.

    The greatest K only at the slopes' distance: it takes as long as all others together.
    """
    return [
        (estimator, samples, distance, latent)
        for latent in grid.latents
        for distance in sorted(grid.distances, key=lambda d: d != SLOPE_DISTANCE)
        for samples in sorted({*grid.samples, *grid.between})
        if samples < grid.samples[-1] or distance == SLOPE_DISTANCE
        for estimator, entry in ENTRIES.items()
        if entry.least <= samples <= entry.most
        if samples in grid.samples or (distance == SLOPE_DISTANCE and entry.slopes)
    ]


def pixels(latent):
    """The dimension of x."""
    return 2 * latent


def groups(samples):
    """M of MIWAE and PIWAE, a power of 2 near the root of all K samples.

    >>> [groups(k) for k in (4, 16, 64, 256)]
    [2, 4, 8, 16]
    """
    return 2 ** (samples.bit_length() // 2)


def replicates(grid, estimator, samples, distance, latent):
    """How often a case is repeated, a multiple of BLOCKS; more often where slopes are fitted."""
    work, most = grid.work, grid.replicates[1]
    if distance == SLOPE_DISTANCE:
        work *= 4
        if latent == grid.latents[0]:
            work, most = work * ENTRIES[estimator].more, 4 * most * ENTRIES[estimator].more
    each = samples * EXAMPLES * (latent + pixels(latent))
    wanted = min(max(work // each, grid.replicates[0]), most)
    return -(-wanted // BLOCKS) * BLOCKS
