"""The benchmark suite: never installed, run from the repository's root.

``operations``, ``samples``, ``mixtures``, ``drop_ins``, ``counts`` and ``quality`` are the suites,
a folder each. Its ``entries`` say what is timed, with one entry per operation or estimator. Its
``cases`` say what is swept, and a ``test_`` module runs them under ``pytest --benchmark``. Its
``results``, ``charts`` and ``tables`` draw from the JSON under ``results/<device>/``, without
torch. ``suites`` is the one list of them. ``harness`` checks, times and writes a run. ``reporting``
reads runs and has what all charts, tables and pages share. ``plot``, ``table``, ``gpu_session``,
``gpu_steps``, ``gpu_noise``, ``total_correlation`` and ``single_cell`` are commands. The last one
needs scvi-tools, and has a JSON of its own.

Imports point one way: commands and ``suites`` -> suites -> ``reporting`` -> ``harness``. A later
suite may import an earlier one, and only ``entries``, ``largest``, ``quality.measure``,
``exact``, ``test_`` modules and what they need of ``harness`` import torch.
"""
