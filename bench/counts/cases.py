"""The sweep of the likelihoods of counts: (batch, genes) of each."""

from ..harness.cases import DIRECTIONS, FLOAT32, Case

# Float32 alone: of bfloat16 log-gamma functions the textbook's differences are noise.
DTYPES = FLOAT32
# A minibatch of scvi-tools by its usual number of genes, and four times as much of either.
CELLS, GENES = (128, 512), (2000, 8000)
SHAPES = {
    ("cpu", "smoke"): [(8, 200)],
    ("cpu", "default"): [(128, 2000)],
    ("cpu", "full"): [(cells, genes) for genes in GENES for cells in CELLS],
    ("cuda", "smoke"): [(128, 2000)],
    ("cuda", "default"): [(cells, genes) for genes in reversed(GENES) for cells in reversed(CELLS)],
}
SHAPES["cuda", "full"] = SHAPES["cuda", "default"]
# A recommender's users by its items, wherever all of the above are.
WIDE = {"multinomial_nll": [(512, 20_000)]}


def shapes(op, device, grid):
    found = SHAPES[device, grid]
    return found if len(found) == 1 else [*found, *WIDE.get(op, [])]


def case_of(op, provider, batch, genes, dtype="float32"):
    return Case(op, provider, batch, genes, dtype, DIRECTIONS[0], suite="counts")


def sweep(entries, device, grid):
    """All cases, a likelihood after the other."""
    return [
        case_of(op, provider, *shape, dtype)
        for op, operation in entries.items()
        for shape in shapes(op, device, grid)
        for dtype in DTYPES
        for provider in operation.provider_names(device)
    ]
