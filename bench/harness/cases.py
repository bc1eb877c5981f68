"""Cases, and the grids that sweeps cover. Torch-free: the charts read it too."""

from typing import NamedTuple

# Pixels of the decoder's output in the steps: 28 x 28, as in every VAE tutorial.
EVENTS = 784
# Units of the decoder of iwae_step: latents -> 256, ReLU -> 784.
HIDDEN = 256
COLORS, NUMBERS = 3, 100  # of a pixel: what a decoder of ten mixtures of logistics has
LONG_ROW = 1_000_000  # the weights of a network, in mean-field inference
GENES = 2000  # of a cell in the drop-ins for counts: as many as are usually kept
DIRECTIONS = ("forward+backward", "forward")
FLOAT32, BOTH = ("float32",), ("float32", "bfloat16")
DTYPES = ("float32", "bfloat16", "float16", "float64")  # in the order of tables and legends


class Grid(NamedTuple):
    """The shapes and dtypes of a sweep, and how long each case is timed."""

    batches: tuple
    latents: tuple
    dtypes: tuple
    seconds: float  # of timing per case and clock, within ``rounds``
    rounds: tuple  # fewest and most
    few: tuple = ()  # more dtypes, in a few cells
    row: int | None = None  # columns of one long row, for operations that have a ``long_row``
    brief: bool = False  # training alone, fewer shapes, and nothing that is ``full_only``


GRIDS = {
    ("cpu", "smoke"): Grid((64,), (8, 32), FLOAT32, 0.005, (3, 10)),
    # Six minutes from a fresh clone: kernels and graphs that compile anew take most of them.
    ("cpu", "default"): Grid(
        (64, 512, 4096), (16, 64, 256), FLOAT32, 0.1, (7, 100), ("bfloat16", "float64"), LONG_ROW,
        brief=True,
    ),
    ("cpu", "full"): Grid(
        (64, 512, 4096), (16, 64, 256), FLOAT32, 0.1, (7, 100), ("bfloat16", "float16", "float64"),
        LONG_ROW,
    ),
    ("cuda", "smoke"): Grid((64, 16384), (64,), FLOAT32, 0.01, (5, 20)),
    # 16384 x 1024 is 16.8M elements: several times the L2, enough to speak of bandwidth.
    ("cuda", "default"): Grid((64, 1024, 16384), (16, 128, 1024), BOTH, 0.05, (21, 100)),
    ("cuda", "full"): Grid(
        (64, 256, 1024, 4096, 16384, 65536), (8, 32, 128, 512, 1024), BOTH, 0.05, (21, 100),
        ("float16",),
    ),
}  # fmt: skip


class Case(NamedTuple):
    """One point of the sweep of an operation."""

    op: str
    provider: str
    batch: int
    latent: int
    dtype: str
    direction: str
    samples: int = 1  # K: of samples, or of components
    suite: str = ""  # the folder that sweeps it

    @property
    def backward(self):
        return self.direction == "forward+backward"


def case_id(case):
    """The test's id, made for ``-k``.

    >>> case_id(Case("gaussian_kl", "eager", 64, 16, "float32", "forward"))
    'gaussian_kl-eager-64-16-float32-forward'
    >>> case_id(Case("iwae_step", "eager", 64, 16, "float32", "forward+backward", 8))
    'iwae_step-eager-K8-64-16-float32-forward+backward'
    """
    op, provider, *rest, samples, _ = case
    count = [f"K{samples}"] if samples > 1 else []
    return "-".join(map(str, [op, provider, *count, *rest]))


def coarse_first(values):
    """Ends first, then the middle: a sweep that is cut short still spans its grid.

    >>> coarse_first((8, 32, 128, 512, 1024))
    [1024, 8, 128, 32, 512]
    """
    ends = [values[-1], values[0]] if len(values) > 1 else list(values)
    inner = sorted(values[1:-1], key=lambda v: abs(values.index(v) - len(values) // 2))
    return ends + inner
