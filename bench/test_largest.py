"""``pytest --benchmark -k largest``: how many samples fit into memory, for each provider."""

import pytest
import torch

from . import clock, largest, oracle, providers, session

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def suite(request):
    return request.config.pluginmanager.get_plugin(session.NAME)


@pytest.mark.benchmark(timer=clock.timer(DEVICE))
@pytest.mark.parametrize("provider", largest.names(DEVICE), ids="largest-{}".format)
def test_largest_samples(benchmark, suite, provider):
    identity = f"largest-{provider}"
    suite.skip_if_spent(identity)
    batch, latent = largest.SHAPE[DEVICE]
    benchmark.group = "largest K"
    benchmark.extra_info.update(
        suite="largest", id=identity, provider=provider, batch=batch, latent=latent
    )
    try:
        step, found = largest.find(provider, DEVICE, suite.config.getoption("grid"))
    except Exception as error:
        if provider in providers.OURS:
            raise
        status = "wrong" if isinstance(error, oracle.WrongResultError) else "failed"
        reason = f"largest K: {type(error).__name__}: {error}".splitlines()[0]
        case = largest.case_of(provider, DEVICE, 1)
        suite.not_timed.append(
            {**case._asdict(), "id": identity, "status": status, "reason": reason}
        )
        pytest.skip(f"{status}: {reason}")
    benchmark.extra_info.update(found)
    benchmark.pedantic(step.run, args=(found["samples"],), rounds=1)
