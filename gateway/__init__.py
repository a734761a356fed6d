"""copilot-gateway: a session-aware, multi-tenant proxy for headless GitHub Copilot CLIs.

Layers, each importing only those named before it::

    errors, types  <-  wire  <-  routing, policy  <-  core  <-  io  <-  app  <-  cli

``tests/test_layers.py`` holds the code to that order.
"""

__version__ = "0.1.0"
