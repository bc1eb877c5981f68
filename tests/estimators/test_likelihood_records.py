"""The record of each likelihood, held against the public functions that it describes."""

import inspect

import pytest

import fused_elbo
from fused_elbo.estimators.dispatch.likelihoods import LIKELIHOODS, NAMES, WIDTHS

LOSSES = ["elbo_loss", "iwae_loss", "chunked_iwae_loss", "elbo_tc_loss", "ELBOLoss"]
IMPLIED = {"self", "impl", "mask"}  # of every likelihood alike


def parameters(name):
    return inspect.signature(getattr(fused_elbo, name)).parameters


def test_every_public_likelihood_has_a_record():
    assert set(NAMES) <= set(LIKELIHOODS)
    assert all(name == record.name for name, record in LIKELIHOODS.items())
    # The others are for compat: they have no function of their own.
    others = set(LIKELIHOODS) - set(NAMES)
    assert others == {"probabilities"}
    assert not any(hasattr(fused_elbo, f"{name}_nll") for name in others)


@pytest.mark.parametrize("name", NAMES)
def test_record_names_the_arguments_of_the_function(name):
    record = LIKELIHOODS[name]
    expected = [record.recon, record.x, *record.parameters]
    assert [p for p in parameters(f"{name}_nll") if p not in IMPLIED] == expected


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_take_the_parameters_of_all(loss):
    """Under the same names and with the same defaults: 0.0 for a width, None for the others."""
    taken = dict(parameters(loss))
    if loss == "ELBOLoss":  # a tensor per example is an argument of its call
        taken |= inspect.signature(fused_elbo.ELBOLoss.forward).parameters
    for record in LIKELIHOODS.values():
        for name in record.parameters:
            assert taken[name].default == (0.0 if name in WIDTHS else None), name
