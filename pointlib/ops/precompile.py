"""Compiles every CUDA kernel ahead of its first use, on a machine with or without a GPU.

    python -m pointlib.ops.precompile --arch sm_87               # Jetson Orin
    python -m pointlib.ops.precompile --arch sm_90 --cache DIR   # used later with POINTLIB_CACHE=DIR

Run it in the image that the vehicle or the cluster will run: a kernel belongs to its NVRTC release too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from pointlib.files import cache_folder
from pointlib.ops._cuda import compiler
from pointlib.ops._cuda.cache import KernelCache


class Summary(NamedTuple):
    """What was done.

    Attributes:
        compiled: Kernels that were compiled now.
        kept: Kernels that were there.
        failures: What NVRTC said of the others.
    """

    compiled: int
    kept: int
    failures: list[str]


def precompile(
    architectures: Sequence[str],
    families: Sequence[str] | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Summary:
    """Fill the cache with every kernel that may be launched on these architectures.

    Args:
        architectures: Such as `sm_87`; `sm_90` means `sm_90a`.
        families: Operator families, by default all.
        cache: What POINTLIB_CACHE will name; by default the user's cache folder.
        jobs: Kernels to compile at the same time; by default one a processor.
        progress: Whether to draw a progress bar.

    Raises:
        ValueError: An architecture or a family is unknown.
        OSError: The cache cannot be written.
    """
    available = compiler.families()
    for family in families or ():
        if family not in available:
            raise ValueError(
                f"precompile: a family must be one of {', '.join(available)}, got {family!r}."
            )
    chosen = {name: v for name, v in available.items() if families is None or name in families}
    kernels = KernelCache((cache or cache_folder()) / "kernels")
    kernels.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=kernels.folder):
        pass  # rather now than after minutes of compiling
    wanted = {
        (source, kernel, name)
        for name in map(_architecture, architectures)
        for variants in chosen.values()
        for source, kernel in variants(compiler.capability_of(name))
    }
    missing = [key for key in sorted(wanted) if kernels.read(kernels.path(*key)) is None]
    failures = []
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        running = [pool.submit(kernels.get, *key) for key in missing]
        bar = tqdm(as_completed(running), "compiling", len(running), disable=not progress)
        for done in bar:
            error = done.exception()
            if isinstance(error, compiler.CompileError):
                failures.append(str(error))
            elif error is not None:
                raise error
    compiled = len(missing) - len(failures)
    return Summary(compiled, len(wanted) - len(missing), failures)


def _architecture(name: str) -> str:
    """The architecture that a device of this name's capability gets; refuse one that this NVRTC does not know."""
    found = compiler.architecture(compiler.capability_of(name))
    if found.startswith("compute"):
        release = ".".join(map(str, compiler.version()))
        raise ValueError(
            f"precompile: an architecture must be one that NVRTC {release} knows, got {name}. "
            "Install a newer CUDA build of torch."
        )
    return found


def _own_architectures() -> list[str]:
    """Of the GPUs of this machine."""
    capabilities = (torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return sorted({f"sm_{major}{minor}" for major, minor in capabilities})


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and precompile; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pointlib.ops.precompile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--arch", nargs="+", metavar="SM", help="such as sm_87 (default: of this machine's GPUs)")
    add("--family", nargs="+", help="operator families, such as kernel_map (default: all)")
    add("--cache", type=Path, help="folder (default: $POINTLIB_CACHE or the user's cache folder)")
    add("--jobs", type=int, help="kernels at the same time (default: one a processor)")
    args = parser.parse_args(argv)
    architectures = args.arch or _own_architectures()
    if not architectures:
        parser.error("this machine has no GPU; name an architecture, such as --arch sm_87")
    start = time.perf_counter()
    try:
        done = precompile(architectures, args.family, args.cache, args.jobs)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    for failure in done.failures:
        tqdm.write(failure, file=sys.stderr)
    tqdm.write(
        f"{', '.join(architectures)}: {done.compiled} kernels compiled in {time.perf_counter() - start:.0f} s, "
        f"{done.kept} were there, {len(done.failures)} failed; in {(args.cache or cache_folder()) / 'kernels'}"
    )
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(main())
