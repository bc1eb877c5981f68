"""The estimators of the sweep, an entry each. Torch-free: the charts read it too."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Entry:
    """An estimator: a name in ESTIMATORS with its options, the K it is run at, how it is drawn."""

    name: str
    bound: str  # what its value estimates, by the names of exact.Exact.bound
    look: str  # a colour of Okabe and Ito's, marker and line, which tell apart what shares one
    charts: str  # those that show it: of "bound snr frontier time"
    options: dict = dataclasses.field(default_factory=dict)
    least: int = 1
    most: int = 10**6
    grouped: bool = False
    more: int = 1  # times the usual work where slopes are fitted
    slopes: dict = dataclasses.field(default_factory=dict)  # of log SNR in log K, in theory
    layer: int = 0  # over the lines of lower layers, where charts of signals are crowded


# Averages of K independent terms: past K = 64 they only repeat 1 / K. What costs K^2 ends sooner.
AVERAGED, SQUARED = 64, 16
ENTRIES = {
    "elbo": Entry("elbo", "elbo", "#7f7f7f s -", "bound snr frontier time", most=AVERAGED),
    "elbo-antithetic": Entry(
        "elbo", "elbo", "#7f7f7f d :", "frontier", {"sampling": "antithetic"}, 2, AVERAGED
    ),
    "elbo-monte-carlo": Entry(
        "elbo-monte-carlo", "elbo", "#7f7f7f x --", "frontier", most=AVERAGED
    ),
    "elbo-entropy": Entry("elbo-entropy", "elbo", "#7f7f7f + -.", "frontier", most=AVERAGED),
    "stl": Entry("stl", "elbo", "#E69F00 v -", "snr frontier time", most=AVERAGED),
    "reinforce": Entry(
        "reinforce", "elbo", "#000000 * :", "frontier time", {}, 2, AVERAGED, layer=2
    ),
    "vimco": Entry("vimco", "iwae", "#000000 P -", "snr frontier time", {}, 2, AVERAGED, layer=1),
    # Rainforth et al. (2018) say this with M = 1. The encoder's signal is a hundredth of its noise
    # there: more replicates, or no slope.
    "iwae": Entry(
        "iwae", "iwae", "#0072B2 ^ -", "bound snr frontier time",
        more=12, slopes={"model": 0.5, "encoder": -0.5},
    ),
    "miwae": Entry("miwae", "miwae", "#56B4E9 < -", "bound snr frontier time", {}, 4, grouped=True),
    "ciwae": Entry("ciwae", "ciwae", "#56B4E9 x --", "bound", {"mix": 0.5}, 2),
    "piwae": Entry("piwae", "iwae", "#CC79A7 D -", "frontier", {}, 4, grouped=True),
    # Tucker et al. (2019). Its squares have a heavy tail.
    "dreg": Entry(
        "dreg", "iwae", "#D55E00 o -", "snr frontier time", more=4, slopes={"encoder": 0.5}
    ),
    "rws": Entry("rws", "iwae", "#009E73 > -", "snr frontier time", {}, 2),
    "renyi": Entry("renyi", "renyi", "#009E73 h --", "bound", {"alpha": 0.5}, 2),
    "cubo": Entry("cubo", "cubo", "#CC79A7 v --", "bound", {"order": 2.0}, 2),
    "jackknife": Entry("jackknife", "evidence", "#E69F00 * --", "bound", {"order": 1}, 2, SQUARED),
}  # fmt: skip
THEORY = {(name, part): s for name, e in ENTRIES.items() for part, s in e.slopes.items()}
