"""No function waits for a device.

On "meta" there is nothing to wait for: looking at a value raises.
"""

import pytest
import torch.nn.functional as F

from fused_elbo import compat
from helpers.originals import F32, LIBRARIES, Case

pytestmark = pytest.mark.usefixtures("one_thread")

# Normal itself looks at its arguments: what takes one is left out.
BLIND = [c for c in LIBRARIES if "bolts" not in c.name and "normals" not in c.name]


@pytest.mark.parametrize("case", BLIND, ids=str)
def test_no_value_is_looked_at(case):
    case.ours(*case.tensors(F32, "meta"), impl="auto")


def test_gaussian_nll_loss_looks_at_no_variance():
    tensors = Case("", ("image", "image", "variances"), None, None).tensors(F32, "meta")
    with pytest.raises(Exception, match=r"[Mm]eta"):
        F.gaussian_nll_loss(*tensors)
    assert compat.gaussian_nll_loss(*tensors).device.type == "meta"


def test_antixk_capacity_looks_at_no_value():
    tensors = LIBRARIES[5].tensors(F32, "meta")
    assert compat.AntixKBetaVAELoss()(*tensors, M_N=1.0)["loss"].device.type == "meta"
