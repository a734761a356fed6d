"""Builds the optional C scanner; without a compiler the pure Python form is used."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "gateway.wire._stream",
            ["gateway/wire/_stream.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
