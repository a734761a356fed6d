"""The load tester behind ``copilot-gateway loadtest``.

* :mod:`~gateway.loadtest.plan`, :mod:`~gateway.loadtest.scenario`, :mod:`~gateway.loadtest.shape`:
  what is to be done, by how many, when (pure);
* :mod:`~gateway.loadtest.histogram`, :mod:`~gateway.loadtest.figures`,
  :mod:`~gateway.loadtest.thresholds`: what was measured, and whether it is good enough (pure);
* :mod:`~gateway.loadtest.ledger`: whether what came back is what was asked for (pure);
* :mod:`~gateway.loadtest.connection`, :mod:`~gateway.loadtest.user`,
  :mod:`~gateway.loadtest.worker`: virtual users in one process;
* :mod:`~gateway.loadtest.runner`, :mod:`~gateway.loadtest.progress`,
  :mod:`~gateway.loadtest.report`, :mod:`~gateway.loadtest.page`: all processes together, seen live
  and told afterwards.
"""
