"""The proxy core: clients, links and sessions, driven by calls, writing to sinks it is given."""
