"""``pytest`` runs tests/; ``pytest --benchmark`` runs bench/, and nothing else does."""

import os
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


def pytest_addoption(parser):
    group = parser.getgroup("fused_elbo", "the benchmark suite of fused_elbo")
    # Its own dest; pytest turned argparse's abbreviations off, so that --benchmark-json and
    # the like stay pytest-benchmark's.
    group.addoption(
        "--benchmark",
        action="store_true",
        dest="benchmark_suite",
        help="run the benchmarks in bench/ instead of the tests",
    )
    group.addoption(
        "--grid", choices=("smoke", "default", "full"), default="default", help="what to sweep"
    )
    group.addoption(
        "--results",
        metavar="DIR",
        help="write raw JSON and summary.csv to DIR/<device>/ (with =, if DIR is elsewhere)",
    )
    group.addoption(
        "--budget", type=float, metavar="SECONDS", help="skip what is left after this time"
    )
    group.addoption(
        "--resume", metavar="DIR", help="skip what DIR/<device>/ has at this commit already"
    )
    parser.addoption(
        "--sample",
        action="store_true",
        help="of each test one case for every value of every parameter, not their combinations",
    )


def pytest_configure(config):
    if not config.getoption("benchmark_suite"):
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark needs pytest-benchmark: pip install -e '.[bench]'")
    # Without paths on the command line pytest is about to collect `testpaths`; it has loaded
    # tests/conftest.py for that already, which asks for Triton's interpreter. No kernel is
    # defined yet, so there is still time to say no: the interpreter is never timed.
    os.environ["TRITON_INTERPRET"] = "0"
    from bench import suites
    from bench.harness import session

    if config.args_source is not config.ArgsSource.ARGS:
        config.args = [str(BENCH / suite.name) for suite in suites.SUITES]
    config.pluginmanager.register(session.Session(config, suites.write_csv), session.NAME)


def pytest_ignore_collect(collection_path, config):
    """bench/ is not collected without the option, even where it is named."""
    if not config.getoption("benchmark_suite") and BENCH in (
        collection_path,
        *collection_path.parents,
    ):
        return True
    return None
