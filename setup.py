"""Builds the optional C twins; without a compiler their pure Python forms are used."""

from setuptools import Extension, setup

_HEADERS = ["gateway/wire/_frame.h", "gateway/wire/_scan.h", "gateway/wire/_stream.h"]

setup(
    ext_modules=[
        Extension(
            name,
            [f"{name.replace('.', '/')}.c"],
            depends=_HEADERS,
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
        for name in ("gateway.wire._scan", "gateway.wire._stream", "gateway.core._lane")
    ]
)
