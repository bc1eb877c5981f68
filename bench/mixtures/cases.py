"""The sweep of the losses that compare all pairs: (batch, components, latents) of each."""

from ..harness.cases import DIRECTIONS, FLOAT32, Case


def crossed(base, *others):
    """A base, and what differs from it in one dimension: ``others`` has a tuple for each.

    >>> crossed((64, 10, 4), (1,), (), (2, 8))
    [(64, 10, 4), (1, 10, 4), (64, 10, 2), (64, 10, 8)]
    """
    changed = [
        (*base[:axis], value, *base[axis + 1 :])
        for axis, values in enumerate(others)
        for value in values
    ]
    return [base, *changed]


def squares(*shapes):
    """A batch that is compared with itself."""
    return [(batch, batch, latent) for batch, latent in shapes]


SMALL = [(128, 500, 32), (128, 10, 16)]
# The huge shape comes last: if the budget ends before it, nothing else is lost.
HUGE = (4096, 4096, 64)
# Float32 alone: of bfloat16 sums over 64 latents the weights of components would be noise.
DTYPES = FLOAT32
SHAPES = {
    ("cpu", "smoke"): {
        "mixture_log_prob": [(16, 24, 4)],
        "kl_aggregate": [(8, 24, 4)],
        "kl_stratified": squares((16, 4)),
    },
    ("cpu", "default"): {
        "mixture_log_prob": [(512, 512, 64), (128, 10, 16), HUGE],
        "kl_aggregate": [(128, 512, 64)],
        "kl_stratified": squares((512, 64), (128, 64)),
    },
    ("cpu", "full"): {
        "mixture_log_prob": [
            *crossed((512, 512, 64), (32, 128, 2048), (32, 128), (4, 16)),
            *SMALL,
            (1024, 1024, 64),
            HUGE,
        ],
        # A data set is at least as large as a batch of it.
        "kl_aggregate": crossed((128, 512, 64), (32, 512), (128, 1024), (4, 16)),
        "kl_stratified": squares((512, 64), (128, 64), (32, 64), (512, 16), (512, 4)),
    },
    ("cuda", "smoke"): {
        "mixture_log_prob": [(256, 512, 64)],
        "kl_aggregate": [(256, 512, 64)],
        "kl_stratified": squares((256, 64)),
    },
    ("cuda", "default"): {
        "mixture_log_prob": [
            *crossed((1024, 1024, 64), (128, 8192), (128, 8192), (16, 256)),
            *SMALL,
            HUGE,
        ],
        "kl_aggregate": [*crossed((1024, 4096, 64), (128,), (1024, 16384), (16, 256)), HUGE],
        "kl_stratified": squares((1024, 64), (128, 64), (4096, 64), (1024, 16)),
    },
}
SHAPES["cuda", "full"] = SHAPES["cuda", "default"]


def case_of(op, provider, batch, components, latent, dtype="float32", direction=DIRECTIONS[0]):
    return Case(op, provider, batch, latent, dtype, direction, components, "mixtures")


def pairs(case):
    """How many (b, k, d) there are."""
    return case.batch * case.samples * case.latent


def sweep(entries, device, grid):
    """All cases, an operation after the other; the huge shapes last."""
    shapes = SHAPES[device, grid]
    cells = [(op, shape) for op in entries for shape in shapes[op]]
    return [
        case_of(op, provider, *shape, dtype, direction)
        for op, shape in sorted(cells, key=lambda cell: cell[1] == HUGE)
        for dtype in DTYPES
        for direction in entries[op].directions
        for provider in entries[op].provider_names(device)
    ]
