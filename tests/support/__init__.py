"""Helpers shared by all tests: a raw client, a scripted replica and the real CLI."""
