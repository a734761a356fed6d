"""A scripted stand-in for the headless CLI that keeps the real one's habits on the wire.

The contract suite in ``tests/contract`` runs on both, and the real CLI is always right.

* :mod:`~tests.support.fake_cli.wire`: frames and envelopes, with the CLI's way of refusing them;
* :mod:`~tests.support.fake_cli.journal`: what is on disk, shareable between fakes;
* :mod:`~tests.support.fake_cli.session`: a live session and its turns;
* :mod:`~tests.support.fake_cli.payloads`: event payloads of some size;
* :mod:`~tests.support.fake_cli.methods`: the methods answered;
* :mod:`~tests.support.fake_cli.server`: sockets, and what a test may do to the process.
"""

from tests.support.fake_cli.model import ScriptedModel
from tests.support.fake_cli.server import FakeCli

__all__ = ["FakeCli", "ScriptedModel"]
