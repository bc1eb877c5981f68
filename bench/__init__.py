"""The benchmark suite: never installed, run from the repository's root.

``cases`` says what is timed, ``providers`` who competes, ``oracle`` who is right,
``traffic`` how many bytes an operation must move, ``clock`` and ``memory`` how it is
measured, ``quiet`` when, ``machine`` on what; ``test_operations`` puts them together under
``pytest --benchmark`` with the help of ``session``. ``results`` reads and writes
``results/<device>/``; ``plot``, ``report`` and ``table`` draw from there without torch.

The operations on K samples are among them; ``largest`` finds how many fit into memory, and
``test_largest`` runs it; ``samples_results``, ``samples_plot`` and ``samples_report`` are their
charts and tables.

The estimators' quality likewise: ``quality_cases`` says what is swept, ``quality`` what is
measured, ``quality_exact`` what the truth is, ``test_quality`` runs it; ``quality_results``,
``quality_plot`` and ``quality_report`` are what the others call for it.
"""
