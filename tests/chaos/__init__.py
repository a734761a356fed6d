"""Real clients, replicas, gateways and Redis under faults: does any conversation suffer?

Run as ``python -m tests.chaos``; ``docs/how-to/chaos.md`` says how and what the figures mean.
"""
