"""Benchmarks: the gateway beside a direct connection, HAProxy and nginx, on the same traffic."""
