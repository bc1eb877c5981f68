"""A page for every public name, from its docstring."""

import importlib
import inspect
import re

import fused_elbo

# The index's order. A public name that is in no group still gets its page, under "Others".
GROUPS = {
    "Losses": "elbo_loss ELBOLoss iwae_loss chunked_iwae_loss elbo_tc_loss",
    "Samples and their KL": "rsample_kl rsample_kl_log_std rsample_log_ratio gaussian_rsample "
    "gaussian_kl balanced_kl gaussian_log_prob importance_weights",
    "Likelihoods": "",  # all names that end in _nll
    "Mixtures and the aggregate posterior": "Mixture mixture_log_prob kl_decomposition",
}
# Modules whose names are written out where they are used.
MODULES = {
    "fused_elbo.compat": None,
    "fused_elbo.distributions": None,
    "fused_elbo.warm_up": None,
    "fused_elbo.estimators.bounds": "estimate Estimate Estimator",
    "fused_elbo.estimators.evaluation": "log_likelihood_bound LogLikelihood",
    "fused_elbo.estimators.diagnostics": "effective_sample_size pareto_k pareto_smoothed "
    "active_units kl_per_dimension gradient_noise GradientNoise",
    "fused_elbo.estimators.schedule": "KLSchedule",
    "fused_elbo.estimators.sampling": "draw",
    "fused_elbo.estimators.models": "LinearGaussianModel BayesianLinearRegression fit_ppca "
    "Gaussian DiagonalGaussian kl_divergence renyi_divergence chi_square_divergence",
}


def pages():
    """The index with the package's own names, and one for each module."""
    sections = [section(title, "fused_elbo", names) for title, names in grouped()]
    found = index("index", "fused_elbo", sections, more=[file_name(m) for m in MODULES])
    for module, names in MODULES.items():
        names = names.split() if names else importlib.import_module(module).__all__
        found |= index(file_name(module), module, [section("", module, names)])
    return found


def file_name(module):
    return module.split(".")[-1]


def index(name, module, sections, more=()):
    """The page that lists names of a module, and theirs."""
    title = "API" if name == "index" else module
    lines = [title, "=" * len(title), "", f".. py:module:: {module}", ""]
    lines += [summary(importlib.import_module(module)), ""]
    lines += [text for text, _ in sections]
    pages = {path: page for _, written in sections for path, page in written.items()}
    if more:
        lines += ["Modules", "-------", "", ".. list-table::", "   :widths: 1 2", ""]
        for other in MODULES:
            lines += [f"   * - :doc:`{other} <{file_name(other)}>`"]
            lines += [f"     - {summary(importlib.import_module(other))}"]
    lines += ["", ".. toctree::", "   :hidden:", ""]
    listed = [path.removeprefix("api/").removesuffix(".rst") for path in pages]
    lines += [f"   {other.split('/')[-1]} <{other}>" for other in [*listed, *more]]
    return pages | {f"api/{name}.rst": "\n".join(lines) + "\n"}


def grouped():
    """(title, names) of the package's own names."""
    groups = {title: names.split() for title, names in GROUPS.items()}
    groups["Likelihoods"] = [name for name in fused_elbo.__all__ if name.endswith("_nll")]
    tuples = {n for n in fused_elbo.__all__ if hasattr(getattr(fused_elbo, n), "_fields")}
    listed = {name for names in groups.values() for name in names}
    groups["What functions return"] = sorted(tuples - listed)
    groups["Others"] = sorted(set(fused_elbo.__all__) - listed - tuples)
    return [(title, names) for title, names in groups.items() if names]


def section(title, module, names):
    """(the index's part, {path: page}) of names of a module."""
    lines = [title, "-" * len(title), ""] if title else []
    lines += [f".. currentmodule:: {module}", "", ".. list-table::", "   :widths: 1 2", ""]
    written = {}
    for name in names:
        known = getattr(importlib.import_module(module), name)
        lines += [f"   * - :py:obj:`{name}`", f"     - {summary(known)}"]
        folder = "" if module == "fused_elbo" else f"{file_name(module)}/"
        written[f"api/{folder}{name}.rst"] = page(module, name, known)
    return "\n".join([*lines, ""]), written


def summary(known):
    """The first sentence of a docstring."""
    return " ".join(inspect.getdoc(known).split("\n\n")[0].split())


def page(module, name, known):
    kind = "class" if inspect.isclass(known) else "function"
    lines = [
        name,
        "=" * len(name),
        "",
        f".. currentmodule:: {module}",
        "",
        f".. auto{kind}:: {name}",
    ]
    if hasattr(known, "_fields") or hasattr(known, "__dataclass_fields__"):
        # The comments in its source say of each field what it is.
        fields = [f for f in inspect.getsource(known).splitlines() if re.match(r"    \w+: ", f)]
        lines += ["", ".. code-block:: python", "", *fields]
    elif kind == "class":
        lines += ["   :members:"]
    return "\n".join(lines) + "\n"
