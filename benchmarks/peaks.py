"""What the processor can do at most, measured by peaks.cpp, which is compiled for this machine and thrown away."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("peaks.cpp")
RATES = ("fp32", "bf16", "int8", "copy", "copy_in_cache")


class Peaks:
    """The compiled program. `measure` may be called again; the larger of all figures counts."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.best: dict[str, Any] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name, "peaks")
        self._compiled = self._compile()

    def _compile(self) -> bool:
        names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
        compiler = next((shlex.split(n) for n in names if n and shutil.which(n.split()[0])), None)
        if compiler is None:
            print("peaks: left out, there is no C++ compiler. Install one (apt install g++).")
            return False
        flags = ["-O3", "-march=native", "-std=c++17", "-fopenmp"]
        done = subprocess.run(
            [*compiler, *flags, str(SOURCE), "-o", str(self._program)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f"peaks: left out, {compiler[0]} does not compile {SOURCE.name}:\n{done.stderr}")
        return done.returncode == 0

    def measure(self) -> None:
        """Measure once more. Rates in 10^9 operations a second, copies in GB/s; 0 where there is no instruction."""
        if not self._compiled:
            return
        done = subprocess.run(
            [str(self._program), str(self.threads)], capture_output=True, text=True, check=True
        )
        new = json.loads(done.stdout)
        for name in RATES:
            new[name] = max(new[name], self.best.get(name, 0.0))
        self.best = new

    def __str__(self) -> str:
        if not self.best:
            return "peaks: not measured"
        b = self.best
        return (
            f"peaks: fp32 {b['fp32']:.0f} GFLOP/s, bf16 {b['bf16']:.0f} ({b['bf16_instruction']}), "
            f"int8 {b['int8']:.0f} ({b['int8_instruction']}), "
            f"copy {b['copy']:.0f} GB/s, within the cache {b['copy_in_cache']:.0f} GB/s"
        )
