"""The competitors, in the order of timing and of every legend. Torch-free: charts read it too.

What a provider runs is in each operation's entry. Those that compile take the function of another
provider, the eager one unless they say otherwise.
"""

from typing import NamedTuple


class Provider(NamedTuple):
    # Okabe and Ito's colours and a few more, told apart with any colour vision; markers tell them
    # apart in grey.
    colour: str
    marker: str
    header: str  # in narrow columns
    devices: tuple = ("cpu", "cuda")
    compile: dict | None = None  # options of torch.compile on a GPU; None: nothing is compiled
    compiles: str = "eager"  # the provider whose function is compiled
    ours: bool = False
    tuned: bool = False  # compiling takes long: timed in the full grid alone


# "max-autotune-no-cudagraphs", with the reductions in one kernel instead of two.
TUNED = ("max_autotune", "coordinate_descent_tuning", "triton.cooperative_reductions")
TUNED = {"options": dict.fromkeys(TUNED, True)}
ON_GPU = ("cuda",)
# fused_elbo last: whatever the order does to clocks and caches, it gains nothing by it.
PROVIDERS = {
    "eager": Provider("#7f7f7f", "s", "eager"),
    "distributions": Provider("#CC79A7", "D", "distri-\nbutions"),
    "builtin": Provider("#E69F00", "v", "builtin"),
    "pyro": Provider("#999933", "p", "pyro"),
    "compile": Provider("#0072B2", "^", "com-\npile", compile={}),
    "compile-max": Provider("#56B4E9", "<", "com-\npile-\nmax", ON_GPU, TUNED, tuned=True),
    "compile-reduce-overhead": Provider(
        "#009E73", ">", "reduce-\nover-\nhead", ON_GPU, {"mode": "reduce-overhead"}, tuned=True
    ),
    # A loop over parts, each compiled: where the textbook in one call leaves the caches.
    "compile-chunked": Provider("#882255", "P", "com-\npile-\nchunked"),
    "fused_elbo": Provider("#D55E00", "o", "fused_\nelbo", ours=True),
    "fused_elbo-chunked": Provider("#000000", "*", "fused_\nelbo-\nchunked", ours=True),
    # The public functions inside a graph, as in a training step that is compiled.
    "fused_elbo-compiled": Provider(
        "#8B4513", "X", "fused_\nelbo-\ncompiled", compile={}, compiles="fused_elbo", ours=True
    ),
}
OURS = tuple(name for name, provider in PROVIDERS.items() if provider.ours)
# The compiler as a rival.
COMPILED = tuple(n for n, p in PROVIDERS.items() if p.compile is not None and not p.ours)
