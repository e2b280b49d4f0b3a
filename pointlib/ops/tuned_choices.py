"""The file that tuning writes and convolutions read: workload -> dataflow, as JSON in the user's cache folder.

POINTLIB_CACHE names another folder; POINTLIB_TUNED=0 ignores the file, so that every machine decides alike.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pointlib.files import cache_folder, locked, write_file

Choices = dict[str, dict[str, Any]]
"""Key of a workload -> fields of its dataflow."""

Kind = Literal["output_stationary", "hybrid", "fetch_on_demand", "gather_scatter", "split_pairs"]
"""What stays while the rest streams by."""
NUMBERS = {"tile_rows", "tile_channels", "splits", "slice_bytes"}


def path() -> Path:
    """Where the choices of this user are."""
    return cache_folder() / "dataflows.json"


@functools.cache
def load() -> Choices:
    """The choices, read once in a process; none where there is no file or it is to be ignored."""
    return {} if os.environ.get("POINTLIB_TUNED") == "0" else read(path())


def read(file: Path) -> Choices:
    """Read choices; a file that is none is reported and passed over, for every choice can be made without it."""
    try:
        choices = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(choices, dict) or not all(map(_is_dataflow, choices.values())):
            raise ValueError("its entries are not dataflows")
        return choices
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(
            f"pointlib: {file} must hold tuned dataflows, got: {error}. It is ignored; delete it, and tune again with "
            "tools/tune.py.",
            stacklevel=2,
        )
        return {}


def _is_dataflow(choice: Any) -> bool:
    if not isinstance(choice, dict) or set(choice) != {*NUMBERS, "kind"}:
        return False
    numbers = all(type(choice[name]) is int and choice[name] >= 0 for name in NUMBERS)
    return numbers and choice["kind"] in get_args(Kind)


def add(choices: Mapping[str, Mapping[str, Any]]) -> Path:
    """Merge choices into the file, which other processes may do at the same time, and use them from now on.

    Returns:
        The file.

    Raises:
        OSError: It cannot be written; what it held before is intact.
    """
    file = path()
    with locked(file.with_suffix(".lock")):
        merged = {**read(file), **{key: dict(value) for key, value in choices.items()}}
        write_file(file, json.dumps(merged, indent=1, sort_keys=True) + "\n")
    load.cache_clear()
    return file
