"""Peers that need no network: what the demo, the load tester and the tests talk to."""
