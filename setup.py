"""Builds the optional C scanners; without a compiler their pure Python forms are used."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            f"gateway.wire.{name}",
            [f"gateway/wire/{name}.c"],
            depends=["gateway/wire/_frame.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
        for name in ("_scan", "_stream")
    ]
)
