"""The estimators: formula, paper, bound, bias, and what the quality suite measured."""

import inspect

import pandas as pd

from fused_elbo.estimators.bounds import ESTIMATORS

IWAE = r"\log \tfrac1K \sum_k w_k"
ELBO = r"\tfrac1K \sum_k \log w_k"
# The value and, where it is not the gradient of the value, the gradient of phi.
FORMULAS = {
    "elbo": (r"\tfrac1K \sum_k \log p(x \mid z_k) - KL(q \| p)", ""),
    "elbo-monte-carlo": (ELBO, ""),
    "elbo-entropy": (r"\tfrac1K \sum_k \log p(x, z_k) + H[q]", ""),
    "stl": (ELBO, r"\tfrac1K \sum_k \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k"),
    "reinforce": (
        ELBO,
        r"\tfrac1K \sum_k \Big(\log w_k - \tfrac{1}{K - 1} \sum_{j \neq k} \log w_j\Big) "
        r"\nabla_\phi \log q(z_k \mid x)",
    ),
    "vimco": (
        rf"L = {IWAE}",
        r"\sum_k \big[(L - L_{-k}) - v_k\big] \nabla_\phi \log q(z_k \mid x)",
    ),
    "iwae": (IWAE, r"\sum_k v_k \nabla_\phi \log w_k"),
    "miwae": (r"\tfrac1M \sum_m \log \tfrac{M}{K} \sum_{k \in m} w_k", ""),
    "ciwae": (rf"\lambda {ELBO} + (1 - \lambda) {IWAE}", ""),
    "piwae": (IWAE, r"\nabla_\phi \text{ of miwae}"),
    "dreg": (
        IWAE,
        r"\sum_k v_k^2 \frac{\partial \log w_k}{\partial z_k} \nabla_\phi z_k",
    ),
    "rws": (IWAE, r"\sum_k v_k \nabla_\phi \log q(z_k \mid x)"),
    "renyi": (r"\tfrac{1}{1 - \alpha} \log \tfrac1K \sum_k w_k^{1 - \alpha}", ""),
    "cubo": (r"\tfrac1n \log \tfrac1K \sum_k w_k^n", ""),
    "jackknife": (r"K L_K - (K - 1) \tfrac1K \sum_k L_{K \setminus k}", ""),
}
INTRO = """# Estimators

{count} estimators of a bound and of its gradient run by name through
{{py:func}}`fused_elbo.estimators.bounds.estimate`.
[Choosing an estimator](docs/choosing-an-estimator.md) says which one to take.

Notation: $z_k \\sim q(z \\mid x)$ for $k = 1 \\dots K$, weights $w_k = p(x, z_k) / q(z_k \\mid x)$,
normalised weights $v_k = w_k / \\sum_j w_j$. The model has the parameters $\\theta$, the encoder
$\\phi$. The gradient is that of the formula, but where a second formula is given for $\\phi$.

"""
TABLE = """
In the column z: whether the estimator needs the gradient of the model in z. The same table is in
the package:

```{eval-rst}
.. py:data:: fused_elbo.estimators.bounds.ESTIMATORS

   A dictionary from the name of an estimator to its
   :class:`~fused_elbo.estimators.bounds.Estimator`.
```
"""
MEASURED = """
## Measured

Device {device}, D = {latent}, K = {samples}, d = {distance:+g}: one cell of
[`quality.csv`](results/{device}/quality.csv). The bias is against the exact value of the bound that
the estimator is for. SNR is the signal-to-noise ratio of the gradient for one example.
[The device's page](results/{device}/README.md#quality-of-the-estimators) has the other cells.

"""
COLUMNS = ["estimator", "bias, nats", "below log p(x), nats", "SNR encoder", "SNR model"]


def pages(root):
    text = INTRO.format(count=len(ESTIMATORS))
    head = ["estimator", "value", "paper", "estimates", "unbiased value", "unbiased gradient", "z"]
    text += table(head, [known_row(name, known) for name, known in ESTIMATORS.items()])
    text += TABLE
    for path in sorted(root.glob("results/*/quality.csv")):
        text += measured(path)
    text += "\n## One by one\n"
    for name, known in ESTIMATORS.items():
        text += entry(name, known)
    return {"estimators.md": text}


def known_row(name, known):
    return [
        f"[`{name}`](#{name})", f"${FORMULAS[name][0]}$".replace("|", r"\|"), known.paper,
        greek(known.bound), "yes" if known.value_unbiased else "no",
        greek(known.gradient_unbiased) or "none",
        "yes" if known.reparameterised else "no",
    ]  # fmt: skip


def greek(words):
    return words.replace("theta", "$\\theta$").replace("phi", "$\\phi$")


def measured(path):
    rows = pd.read_csv(path)
    rows = rows[rows.run == rows.run.max()]
    cell = rows[(rows.samples == 16) & (rows.distance == 0.5) & (rows.latent == rows.latent.min())]
    if cell.empty:
        return ""
    words = MEASURED.format(device=path.parent.name, latent=cell.latent.iloc[0], samples=16,
                            distance=0.5)  # fmt: skip
    return words + table(COLUMNS, [measured_row(row) for row in cell.itertuples()])


def measured_row(row):
    pairs = [
        (row.bias, row.bias_error),
        (row.gap, row.gap_error),
        (row.encoder_snr, row.encoder_snr_error),
        (row.model_snr, row.model_snr_error),
    ]
    return [f"`{row.estimator}`", *(with_error(*pair) for pair in pairs)]


def with_error(value, error):
    if value != value:
        return "not defined"
    return f"{value:.4f} ± {error:.4f}"


def entry(name, known):
    value, gradient = FORMULAS[name]
    text = f"\n### `{name}`\n\n$$\n{value}\n$$\n"
    if gradient:
        text += f"\nGradient of $\\phi$:\n\n$$\n{gradient}\n$$\n"
    doc = inspect.getdoc(known.function).replace("|", r"\|")
    return text + f"\n```{{eval-rst}}\n{doc}\n```\n"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
