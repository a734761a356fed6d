"""The wire: framing, envelopes and the method table. Pure: bytes in, values out."""
