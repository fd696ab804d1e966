"""Content codings of an answer whose bytes are seen before the client decodes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["UnknownCoding", "decoder_of"]

Decode = Callable[[bytes], bytes]


class UnknownCoding(Exception):
    """The answer is coded in a way that cannot be read here."""


def decoder_of(coding: str) -> Decode | None:
    """What decodes pieces of a body with this ``Content-Encoding``; None where there is nothing to do.

    Raises :class:`UnknownCoding`. Brotli and Zstandard need the libraries that the client needs too.
    """
    decoders = [_decoder(name) for name in _names(coding)]
    if not decoders:
        return None

    def decode(data: bytes) -> bytes:
        for one in reversed(decoders):  # the last applied is the first to be undone
            data = one(data)
        return data

    return decode


def _names(coding: str) -> list[str]:
    names = [name.strip().lower() for name in coding.split(",")]
    return [name for name in names if name and name != "identity"]


def _decoder(name: str) -> Decode:
    if name in ("gzip", "x-gzip"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if name == "deflate":
        return _Deflate().decompress
    for module, make, method in _OTHERS.get(name, ()):
        try:
            decoder: Any = getattr(import_module(module), make)()
        except ImportError:
            continue
        if module == "zstandard":
            decoder = decoder.decompressobj()
        decode: Decode = getattr(decoder, method)
        return decode
    raise UnknownCoding(name[:40])


_OTHERS = {
    "br": (("brotli", "Decompressor", "process"), ("brotlicffi", "Decompressor", "process")),
    "zstd": (
        ("compression.zstd", "ZstdDecompressor", "decompress"),
        ("backports.zstd", "ZstdDecompressor", "decompress"),
        ("zstandard", "ZstdDecompressor", "decompress"),
    ),
}


class _Deflate:
    """Servers send zlib's format or bare deflate under this name."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj()
        self._first = True

    def decompress(self, data: bytes) -> bytes:
        if not self._first or not data:
            return self._decoder.decompress(data)
        self._first = False
        try:
            return self._decoder.decompress(data)
        except zlib.error:
            self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._decoder.decompress(data)
