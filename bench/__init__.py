"""The benchmark suite: never installed, run from the repository's root.

``operations``, ``samples``, ``mixtures``, ``drop_ins`` and ``quality`` are the suites, a folder
each: what is timed is in its ``entries``, one entry an operation or estimator with all that is
known of it; what is swept is in ``cases``, and a ``test_`` module runs it under ``pytest
--benchmark``. ``results``, ``charts`` and ``tables`` of a suite draw from the JSON under
``results/<device>/``, without torch. ``suites`` lists them all. ``harness`` checks, times and
writes a run; ``reporting`` reads runs and has what all charts, tables and pages share. ``plot``,
``table`` and ``gpu_session`` are commands.

Imports point one way: commands and ``suites`` -> suites -> ``reporting`` -> ``harness``. Of suites
a later one may import an earlier one, and only ``entries``, ``largest``, ``quality.measure``,
``exact``, ``test_`` modules and what they need of ``harness`` import torch.
"""
