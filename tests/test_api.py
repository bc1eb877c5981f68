"""The package from outside: names, signatures, imports, and what it does not import."""

import doctest
import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import re
import subprocess
import sys

import pytest

import fused_elbo
import fused_elbo.estimators

SIGNATURES = {
    "gaussian_log_prob": "x mu logvar * event_dims=1 impl='auto'",
    "gaussian_kl": "mu logvar prior_mu=None prior_logvar=None * event_dims=1 impl='auto'",
    "gaussian_rsample": "mu logvar num_samples=None * generator=None impl='auto'",
    "rsample_kl": "mu logvar prior_mu=None prior_logvar=None * event_dims=1 prior=None "
    "gradient='total' generator=None impl='auto'",
    "rsample_kl_log_std": "mu log_std prior_mu=None prior_log_std=None * soft_clamp=0.0 "
    "std_offset=0.0 generator=None impl='auto'",
    "balanced_kl": "mu logvar prior_mu prior_logvar * free_nats=1.0 impl='auto'",
    "gaussian_nll": "recon x recon_logvar=0.0 * mask=None impl='auto'",
    "bernoulli_nll": "logits x * mask=None impl='auto'",
    "laplace_nll": "recon x log_scale=0.0 * mask=None impl='auto'",
    "poisson_nll": "log_rate x * mask=None impl='auto'",
    "negative_binomial_nll": "log_mean x log_theta * zero_logits=None mask=None impl='auto'",
    "softmax_negative_binomial_nll": "logits x log_theta log_library * zero_logits=None "
    "mask=None reduction='none' impl='auto'",
    "multinomial_nll": "logits counts * mask=None impl='auto'",
    "categorical_nll": "logits target * mask=None impl='auto'",
    "rsample_log_ratio": "mu logvar num_samples prior_mu=None prior_logvar=None * event_dims=1 "
    "prior=None gradient='total' antithetic=False generator=None impl='auto'",
    "kl_decomposition": "z mu logvar dataset_size=None * estimator='stratified' dataset=None "
    "impl='auto'",
    "elbo_tc_loss": "recon x z mu logvar dataset_size=None * mutual_information=1.0 "
    "total_correlation=1.0 dimension_wise=1.0 estimator='stratified' dataset=None "
    "likelihood='bernoulli' recon_logvar=0.0 log_scale=0.0 log_theta=0.0 zero_logits=None "
    "reduction='mean' return_parts=False impl='auto'",
    "mixture_log_prob": "z mu logvar log_weights=None * impl='auto'",
    "discretized_mix_logistic_nll": "params x num_mixtures * bits=8 right_edge=0.999 "
    "reduction='none' impl='auto'",
    "importance_weights": "log_weights alpha=0.0 * impl='auto'",
    "iwae_loss": "recon x log_ratio * likelihood='bernoulli' recon_logvar=0.0 log_scale=0.0 "
    "log_theta=0.0 zero_logits=None alpha=0.0 mask=None reduction='mean' return_parts=False "
    "impl='auto'",
    "chunked_iwae_loss": "decoder x mu logvar num_samples * chunk_size prior_mu=None "
    "prior_logvar=None prior=None gradient='total' antithetic=False likelihood='bernoulli' "
    "recon_logvar=0.0 log_scale=0.0 log_theta=0.0 zero_logits=None alpha=0.0 mask=None "
    "reduction='mean' return_parts=False generator=None impl='auto'",
    "elbo_loss": "recon x mu=None logvar=None * kl=None likelihood='bernoulli' recon_logvar=0.0 "
    "log_scale=0.0 log_theta=0.0 zero_logits=None prior_mu=None prior_logvar=None beta=1.0 "
    "mask=None reduction='mean' return_parts=False impl='auto'",
    "ELBOLoss": "* likelihood='bernoulli' recon_logvar=0.0 log_scale=0.0 log_theta=0.0 beta=1.0 "
    "reduction='mean' return_parts=False impl='auto'",
}


def spelled(function):
    """'a b=1 * c=2': names, defaults, and where keyword-only arguments begin."""
    words, keyword_only = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            words.append("*")
            keyword_only = True
        words.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return " ".join(words)


def test_names():
    tuples = {
        "BalancedKL",
        "ELBOParts",
        "ELBOTCParts",
        "IWAEParts",
        "ImportanceWeights",
        "KLDecomposition",
        "Mixture",
    }
    assert set(fused_elbo.__all__) == tuples | set(SIGNATURES)
    assert all(hasattr(fused_elbo, name) for name in fused_elbo.__all__)
    assert fused_elbo.__version__ == importlib.metadata.version("fused-elbo")


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    assert spelled(getattr(fused_elbo, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) - {"ELBOLoss"}))
def test_docstring_has_what_a_reader_needs(name):
    doc = getattr(fused_elbo, name).__doc__
    for part in (".. math::", "Equivalent PyTorch", "Args:", "Returns:", "Raises:", ">>>", "nats"):
        if (name, part) in {("gaussian_rsample", "nats"), ("rsample_kl", ".. math::")}:
            continue  # a sample has no unit; rsample_kl refers to its two halves
        if name == "chunked_iwae_loss" and part in (".. math::", "Equivalent PyTorch", "nats"):
            continue  # it is iwae_loss, computed otherwise
        assert part in doc, part
    assert re.search(r"20\d\d", doc)  # the source


def modules():
    yield from (fused_elbo.__name__, fused_elbo.estimators.__name__)
    api, estimators = fused_elbo.__path__, fused_elbo.estimators.__path__
    yield from (info.name for info in pkgutil.iter_modules(api, "fused_elbo."))
    yield from (info.name for info in pkgutil.walk_packages(estimators, "fused_elbo.estimators."))


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_doctests(name):
    result = doctest.testmod(
        importlib.import_module(name), extraglobs={"torch": __import__("torch")}
    )
    assert result.failed == 0


def test_no_bare_names_are_installed():
    """`kernels` and `estimators` at the top level would collide with other distributions."""
    names = importlib.metadata.packages_distributions()
    for bare in ("kernels", "estimators", "api", "bench"):
        assert "fused-elbo" not in names.get(bare, [])
    assert "fused-elbo" in importlib.metadata.distribution("fused-elbo").metadata["Name"]


ALL_OPERATIONS = """
import torch, fused_elbo as fe
a, b = torch.rand(3, 4, requires_grad=True), torch.rand(3, 4)
fe.gaussian_log_prob(a, b, b); fe.gaussian_kl(a, b); fe.gaussian_rsample(a, b, 2)
fe.rsample_kl(a, b); fe.gaussian_nll(a, b); fe.bernoulli_nll(a, b)
fe.elbo_loss(a, b, mu=a, logvar=b).backward(); fe.ELBOLoss()(a, b, a, b)
"""
BLOCK_TRITON = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else real(name, *a)
"""


def run(code, **environment):
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_cpu_tensors_import_no_triton():
    """Our operations add no import of Triton to those of torch itself."""
    code = "import torch, sys\nbefore = set(sys.modules)\n" + ALL_OPERATIONS
    code += "print([m for m in set(sys.modules) - before if m.split('.')[0] == 'triton'])\n"
    code += "print([m for m in sys.modules if m.startswith('fused_elbo.kernels.triton')])"
    assert run(code).split() == ["[]", "[]"]


def test_works_without_triton():
    code = BLOCK_TRITON + ALL_OPERATIONS
    code += """
try:
    fe.gaussian_kl(a, b, impl="triton")
except RuntimeError as error:
    print(error)
"""
    assert "pip install triton" in run(code)


def test_kernels_on_a_cpu_need_the_interpreter():
    code = (
        ALL_OPERATIONS
        + """
try:
    fe.gaussian_kl(a, b, impl="triton")
except RuntimeError as error:
    print(error)
"""
    )
    pytest.importorskip("triton")
    assert "TRITON_INTERPRET=1" in run(code, TRITON_INTERPRET="0")


def test_compat_is_imported_from_the_package():
    """In a process that has not imported it yet."""
    assert run("from fused_elbo import compat\nprint(compat.mse_loss.__name__)").split() == [
        "mse_loss"
    ]


def test_import_is_quick():
    """Beside torch, the package's own import is small: no pandas, no scipy, no kernels."""
    code = "import torch, sys\nbefore = set(sys.modules)\nimport fused_elbo\n"
    code += "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    added = set(run(code).split()) - set(sys.stdlib_module_names)
    assert {m for m in added if not m.startswith(("_", "fused_elbo"))} <= {
        "__editable___fused_elbo"
    }


WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # as if they were not installed
import doctest, importlib, pkgutil
import torch
import fused_elbo, fused_elbo.estimators as package
failed = 0
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    module = importlib.import_module(module.name)
    failed += doctest.testmod(module, extraglobs={"torch": torch}).failed
mu, logvar = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
z, kl = fused_elbo.rsample_kl(mu, logvar)
fused_elbo.elbo_loss(z, torch.ones(2, 3), kl=kl).backward()
assert mu.grad is not None and logvar.grad is not None
try:
    fused_elbo.gaussian_kl(mu, logvar, impl="numba")
except RuntimeError as error:
    print(error)
sys.exit(failed)
"""


def test_without_numba():
    """The reference does it all, and who insists is told what is missing."""
    printed = run(WITHOUT_NUMBA, TRITON_INTERPRET="0")
    assert "impl='numba' needs numba, which is not installed: pip install numba" in printed
