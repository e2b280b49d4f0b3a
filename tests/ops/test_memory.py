"""Freed memory is kept: a block that is allocated again costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys, torch
from pointlib.ops.memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
else:
    print(None)
def fill():
    torch.empty(100 * 2**20, dtype=torch.uint8).fill_(1)
for _ in range(20):  # what alignment cuts off a block keeps it from fitting again, until the cache for it is full
    fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(choice: str) -> tuple[str, int]:
    command = [sys.executable, "-c", COUNT_FAULTS, choice]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer, count = done.stdout.split()
    return answer, int(count)


def test_a_block_used_again_is_not_asked_for_again() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("needs glibc")
    answer, kept = faults("keep")
    assert answer == "True"
    assert kept < 100 < faults("return")[1]
