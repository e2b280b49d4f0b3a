"""Feather files, as Argoverse 2 stores its tables; pyarrow reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from pointlib.data.sample import BadSampleError

Column = npt.NDArray[Any]


def read_feather(path: str | Path) -> dict[str, Column]:
    """Read a table of numbers and text.

    Args:
        path: A .feather file without missing values.

    Returns:
        Column name -> (N,) array, in the order of the file; text as an array of Python's strings.

    Raises:
        ImportError: If pyarrow is not installed.
        BadSampleError: If the file is missing, cut short or damaged, or has missing values.
    """
    try:
        import pyarrow
        from pyarrow import feather
    except ModuleNotFoundError as error:
        raise ImportError(
            "read_feather: pyarrow must be installed; run: pip install 'pointlib[argoverse]'"
        ) from error
    try:
        table = feather.read_table(path, memory_map=False)
        table.validate(full=True)
        columns = {name: table[name].to_numpy() for name in table.column_names}
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise BadSampleError(
            f"read_feather: {path} must be a complete Feather file of numbers and text, got "
            f"{str(error).splitlines()[0]}. Download the log again."
        ) from error
    missing = [name for name in columns if table[name].null_count]
    if missing:
        raise BadSampleError(
            f"read_feather: {path} must have no missing values, got some in {', '.join(missing)}."
        )
    return columns
