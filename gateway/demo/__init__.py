"""The conversation behind ``copilot-gateway demo``: real CLIs, a real SDK, a scripted model.

* :mod:`~gateway.demo.screen`: what it looks like on the terminal;
* :mod:`~gateway.demo.process`: the gateway, as a program of its own;
* :mod:`~gateway.demo.story`: what happens, and the checks that it did.
"""
