"""The models of scvi-tools, the cells they are trained on, and the lines that switch them over."""

import numpy as np
import torch

from fused_elbo import compat

NEEDS = (
    "bench.single_cell needs scvi-tools, in an environment of its own: python -m venv ENV; "
    "ENV/bin/pip install -e '.[single-cell]'; ENV/bin/python -m bench.single_cell"
)
# Two lines for genes, and a third for TOTALVI's proteins.
REPLACED = {
    "log_nb_positive": compat.scvi_log_nb_positive,
    "log_zinb_positive": compat.scvi_log_zinb_positive,
    "log_mixture_nb": compat.scvi_log_mixture_nb,
}
TYPES, PROTEINS, UNLABELED = 5, 20, "unknown"


def load():
    """scvi-tools, and the module whose functions are replaced. Exits where it is not installed."""
    try:
        import scvi
        import scvi.distributions._negative_binomial as module
    except ImportError as error:
        raise SystemExit(f"{NEEDS} ({' '.join(str(error).split())})") from None
    return scvi, module


def counts_of(generator, log_means, depths, dispersions):
    """Gamma-Poisson counts of cells of the given depths."""
    means = depths[:, None] * np.exp(log_means)
    return generator.poisson(generator.gamma(dispersions, means / dispersions)).astype(np.float32)


def simulated(cells, genes, seed):
    """Cells of five types, of which nine in ten counts are 0. A third of them is labelled."""
    import anndata
    import pandas as pd
    import scipy.sparse

    generator = np.random.default_rng(seed)
    types = generator.integers(TYPES, size=cells)
    depths = np.exp(0.3 * generator.standard_normal(cells))
    of_gene = generator.normal(-3.2, 1.2, genes)
    log_means = of_gene + 0.7 * generator.standard_normal((TYPES, genes))
    x = counts_of(generator, log_means[types], depths, np.exp(generator.standard_normal(genes)))
    levels = generator.normal(3.0, 1.0, (TYPES, PROTEINS))
    proteins = counts_of(generator, levels[types], depths, np.full(PROTEINS, 2.0))
    known = generator.random(cells) < 1 / 3
    labels = np.where(known, np.char.add("type ", types.astype(str)), UNLABELED)
    names = [f"cell {i}" for i in range(cells)]
    found = anndata.AnnData(scipy.sparse.csr_matrix(x), pd.DataFrame({"label": labels}, names))
    found.obsm["proteins"] = proteins
    return found


class Models:
    """The models by name, all on the same cells; each is made anew, from the same seed."""

    def __init__(self, scvi, module, cells):
        self.scvi, self.module, self.cells = scvi, module, cells
        self.originals = {name: getattr(module, name) for name in REPLACED}
        model = scvi.model
        self.by_name = {
            "SCVI, nb": (model.SCVI, {}, {"gene_likelihood": "nb"}),
            "SCVI, zinb": (model.SCVI, {}, {"gene_likelihood": "zinb"}),
            "SCANVI": (
                model.SCANVI, {"labels_key": "label", "unlabeled_category": UNLABELED}, {},
            ),
            "TOTALVI": (
                model.TOTALVI, {"protein_expression_obsm_key": "proteins"},
                {"empirical_protein_background_prior": False},
            ),
            "PEAKVI": (model.PEAKVI, {}, {}),
        }  # fmt: skip

    def make(self, name, seed):
        kind, fields, options = self.by_name[name]
        cells = self.cells.copy()
        kind.setup_anndata(cells, **fields)
        self.scvi.settings.seed = seed
        return kind(cells, **options)

    def switch(self, model, after):
        """From here on everything runs with our functions, or again with scvi-tools'."""
        for name, replacement in REPLACED.items():
            setattr(self.module, name, replacement if after else self.originals[name])
        if isinstance(model, self.scvi.model.PEAKVI):
            own = type(model.module).get_reconstruction_loss.__get__(model.module)
            ours = compat.scvi_peakvi_reconstruction_loss
            model.module.get_reconstruction_loss = ours if after else own

    def minibatch(self, model, size):
        """The first one, as the data loader of scvi-tools makes it."""
        loader = self.scvi.dataloaders.AnnDataLoader(model.adata_manager, batch_size=size)
        return next(iter(loader))


def optimizer_of(model):
    """scvi-tools' own."""
    return torch.optim.Adam(model.module.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)


def step(model, optimizer, minibatch):
    """A training step: the loss before it."""
    optimizer.zero_grad()
    _, _, losses = model.module(minibatch, loss_kwargs={"kl_weight": 1.0})
    losses.loss.backward()
    optimizer.step()
    return losses.loss.detach()
