"""Bad input of importance weights and their losses."""

import pytest
import torch

from helpers.bad_input import DECODER, I64, IMPLS, META, bad, check, t

TABLE = {
    "integer log_weights": bad(
        "importance_weights",
        torch.ones(3, 4, dtype=I64),
        error=TypeError,
        says=["log_weights", "torch.int64"],
    ),
    "sparse log_ratio": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3).to_sparse(),
        error=TypeError,
        says=["log_ratio must be dense", "torch.sparse_coo"],
    ),
    "grey values in IWAE's loss": bad(
        "iwae_loss",
        t(5, 3, 4),
        torch.ones(3, 4, dtype=torch.uint8),
        t(5, 3),
        error=TypeError,
        says=["x of a Bernoulli", "torch.uint8", "x.float() / 255", "x.bool()"],
    ),
    "weights without samples": bad(
        "importance_weights", t(0, 4), says=["log_weights [K, ...]", "(0, 4)"]
    ),
    "weights a scalar": bad("importance_weights", t(), says=["log_weights [K, ...]", "()"]),
    "weights alpha": bad("importance_weights", t(3, 4), float("inf"), says=["alpha", "inf"]),
    "weights alpha a tensor": bad(
        "importance_weights", t(3, 4), t(), error=TypeError, says=["alpha", "number", "Tensor"]
    ),
    "iwae log_ratio shape": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(3, 5),
        says=["recon (5, 3, 4)", "log_ratio (3, 5)", "[K, B]"],
    ),
    "iwae without samples' dimension": bad(
        "iwae_loss",
        t(3, 4),
        t(3, 4),
        t(3),
        says=["recon [K, B, ...]", "recon (3, 4)", "log_ratio (3,)"],
    ),
    "iwae log_ratio device": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3).to(META),
        says=["recon and log_ratio", "device", "meta"],
    ),
    "iwae likelihood": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        likelihood="cauchy",
        says=["likelihood", "'bernoulli'", "'gaussian'", "'cauchy'"],
    ),
    "iwae reduction": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        reduction="batchmean",
        says=["reduction", "'none'", "'mean'", "'sum'", "'batchmean'"],
    ),
    "iwae alpha": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        alpha="0",
        error=TypeError,
        says=["alpha", "number", "str"],
    ),
    "iwae recon_logvar with bernoulli": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        recon_logvar=0.5,
        says=["recon_logvar", "gaussian"],
    ),
    "chunked chunk_size": bad(
        "chunked_iwae_loss",
        DECODER,
        t(3, 4),
        t(3, 2),
        t(3, 2),
        4,
        chunk_size=0,
        says=["chunk_size", "at least 1", "0"],
    ),
    "chunked odd pairs": bad(
        "chunked_iwae_loss",
        DECODER,
        t(3, 4),
        t(3, 2),
        t(3, 2),
        4,
        chunk_size=3,
        antithetic=True,
        says=["antithetic", "even chunk_size", "3"],
    ),
    "chunked dreg with another bound": bad(
        "chunked_iwae_loss",
        DECODER,
        t(3, 4),
        t(3, 2),
        t(3, 2),
        4,
        chunk_size=2,
        gradient="dreg",
        alpha=0.5,
        says=["gradient='dreg'", "alpha=0", "0.5"],
    ),
    "chunked decoder of another shape": bad(
        "chunked_iwae_loss",
        DECODER,
        t(3, 5),
        t(3, 2),
        t(3, 2),
        4,
        chunk_size=2,
        says=["decoder(z) [K, B, ...]", "decoder(z) (2, 3, 4)", "x (3, 5)"],
    ),
    "chunked decoder no function": bad(
        "chunked_iwae_loss",
        None,
        t(3, 5),
        t(3, 2),
        t(3, 2),
        4,
        chunk_size=2,
        error=TypeError,
        says=["decoder", "callable", "NoneType"],
    ),
    "recon_logvar with laplace": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        likelihood="laplace",
        recon_logvar=t(),
        says=["recon_logvar", "gaussian"],
    ),
    "zero_logits with poisson": bad(
        "iwae_loss",
        t(5, 3, 4),
        t(3, 4),
        t(5, 3),
        likelihood="poisson",
        zero_logits=t(4),
        says=["zero_logits", "negative_binomial"],
    ),
    "categorical samples of another shape": bad(
        "iwae_loss",
        t(5, 3, 4),
        torch.zeros(2, dtype=I64),
        t(5, 3),
        likelihood="categorical",
        says=["recon (5, 3, 4)", "[K, B, ..., C]", "x (2,)"],
    ),
}


@IMPLS
@pytest.mark.parametrize("case", TABLE)
def test_raises_and_names_the_argument(case, impl, device):
    check(TABLE[case], impl, device)
