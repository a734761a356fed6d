"""The edges: sockets, registry drivers, replica processes, admin HTTP, telemetry."""
