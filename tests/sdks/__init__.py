"""SDKs of every generation and language against CLIs of every generation; see ``matrix``."""
