"""The package imported twice in one process, as a notebook's reload and test runners do."""

import subprocess
import sys

TWICE = """
import sys, torch, fused_elbo as first
for name in [n for n in sys.modules if n.split(".")[0] == "fused_elbo"]:
    del sys.modules[name]
import fused_elbo as second
assert first is not second
x = torch.zeros(2, 3, device="meta", requires_grad=True)
for package in (first, second, first):
    assert package.gaussian_kl(x, 2 * x).shape == (2,)
    torch.library.opcheck(
        torch.ops.fused_elbo.gaussian_kl.default, (x.detach(), x.detach(), None, None),
        test_utils="test_schema",
    )
"""


def test_twice():
    done = subprocess.run(
        [sys.executable, "-c", TWICE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
