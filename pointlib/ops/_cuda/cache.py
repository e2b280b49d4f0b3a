"""Keeps compiled kernels on disk: one file a kernel, named by everything that decides its code.

It may be deleted at any time, and copied to another machine: one with the same NVRTC finds its kernels there.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

from pointlib.files import cache_folder, write_file
from pointlib.ops._cuda import compiler


class Kernel(NamedTuple):
    """Machine code of one kernel, and its symbol there."""

    code: bytes
    symbol: bytes


class KernelCache:
    """Kernels in a folder.

    Args:
        folder: Made when the first kernel is kept; by default `kernels` in `pointlib.files.cache_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "kernels"
        self._warned = False

    def path(self, source: str, kernel: str, architecture: str) -> Path:
        """Where one kernel is kept: its sources, name, options, architecture and compiler make the name."""
        digest = hashlib.sha256()
        facts = (kernel, architecture, repr(compiler.OPTIONS), repr(compiler.version()))
        parts = [fact.encode() for fact in facts]
        for file in compiler.source_files(source):
            parts += [file.name.encode(), file.read_bytes()]
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return self.folder / f"{Path(source).stem}-{architecture}-{digest.hexdigest()}.kernel"

    def read(self, path: Path) -> Kernel | None:
        """The kernel, or None where there is none or the file is damaged."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, _, kept = content.partition(b"\n")
        if checksum.decode("ascii", "replace") != hashlib.sha256(kept).hexdigest():
            return None
        symbol, _, code = kept.partition(b"\n")
        return Kernel(code, symbol)

    def write(self, path: Path, kernel: Kernel) -> None:
        """Keep a kernel; where that cannot be done, say so once."""
        kept = kernel.symbol + b"\n" + kernel.code
        try:
            write_file(path, hashlib.sha256(kept).hexdigest().encode() + b"\n" + kept)
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"pointlib: compiled kernels must be kept in {self.folder}, got {error}. They are compiled "
                    "again in every process; name a folder that can be written in POINTLIB_CACHE.",
                    stacklevel=2,
                )

    def get(self, source: str, kernel: str, architecture: str) -> Kernel:
        """The kernel from the folder, or compiled and kept there."""
        path = self.path(source, kernel, architecture)
        kept = self.read(path)
        if kept is None:
            made = compiler.compile_kernels(source, [kernel], architecture)
            kept = Kernel(made.code, made.symbols[kernel])
            self.write(path, kept)
        return kept
