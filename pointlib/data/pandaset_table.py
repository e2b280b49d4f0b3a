"""Tables of PandaSet's .pkl.gz files, read without pandas and without executing anything that stands in them.

A pickle may call whatever it names. Here it may only name what pandas writes for a table of numbers and strings, and
each of these names is bound to a passive class below that records or decodes what it is given; arrays are decoded from
their bytes by this module, since numpy's own `__setstate__` trusts the dtype a file claims. Anything else is refused.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointlib.data.sample import BadSampleError

Column = npt.NDArray[Any]
MAX_BYTES = 1 << 30
"""Most bytes a table may unpack to: a hundred times a LiDAR frame."""

_DTYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})


class _Refused(Exception):
    """What the file asks for is not part of a table."""


class _Passive:
    """Base of what stands in for a class or function of pandas or numpy.

    Every one defines `__new__` and `__setstate__`, the only things that the opcodes of a pickle call, and has slots, so
    that a pickle cannot hang attributes on it.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"a state for {type(self).__name__}")


class _Dtype(_Passive):
    """`numpy.dtype("f8", False, True)`, then a state whose second entry is the byte order."""

    __slots__ = ("code", "order")
    code: str
    order: str

    def __new__(cls, code: object, *_: object) -> _Dtype:
        if not isinstance(code, str) or (code not in _DTYPES and code not in ("O8", "O")):
            raise _Refused(f"the dtype {code!r}")
        made = super().__new__(cls)
        made.code, made.order = code, "|"
        return made

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise _Refused(f"the byte order {state[1]!r}")
        self.order = state[1]

    def decode(self, content: object, shape: Any, fortran: bool) -> Column:
        """Turn what the file holds into an array that owns its memory."""
        shape = tuple(int(size) for size in shape)
        if self.code.startswith("O"):
            if not isinstance(content, list):
                raise _Refused("objects from bytes")
            array = np.empty(len(content), dtype=object)
            array[:] = content
        else:
            if not isinstance(content, (bytes, bytearray)):
                raise _Refused(f"numbers from {type(content).__name__}")
            array = np.frombuffer(bytes(content), dtype=np.dtype(self.order + self.code))
            array = array.astype(array.dtype.newbyteorder("="))
        return array.reshape(shape, order="F" if fortran else "C")


class _Array(_Passive):
    """`_reconstruct(ndarray, (0,), b"b")`, then the state (version, shape, dtype, fortran, content)."""

    __slots__ = ("values",)
    values: Column

    def __new__(cls, *_: object) -> _Array:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.values = _checked(dtype, _Dtype).decode(content, shape, bool(fortran))


class _Ndarray(_Passive):
    """`numpy.ndarray`, which is only ever an argument of `_reconstruct`."""

    __slots__ = ()

    def __new__(cls, *_: object) -> _Ndarray:
        raise _Refused("a call of numpy.ndarray")


class _FromBuffer(_Passive):
    """`_frombuffer(bytes, dtype, shape, order)` of pickle protocol 5."""

    __slots__ = ()

    def __new__(cls, content: object, dtype: object, shape: Any, order: str, *_: object) -> Any:
        array = _Array()
        array.values = _checked(dtype, _Dtype).decode(content, shape, order == "F")
        return array


class _Scalar(_Passive):
    """`scalar(dtype, bytes)`: one number of numpy."""

    __slots__ = ()

    def __new__(cls, dtype: object, content: object) -> Any:
        return _checked(dtype, _Dtype).decode(content, (), False)[()]


class _Encode(_Passive):
    """`_codecs.encode(text, "latin1")`: how protocol 2 writes bytes."""

    __slots__ = ()

    def __new__(cls, text: object, encoding: object = "latin1") -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise _Refused(f"the encoding {encoding!r}")
        return text.encode("latin1")


class _Index(_Passive):
    """`Index`, `RangeIndex`, `Int64Index`: never called, only named by `_new_Index`."""

    __slots__ = ()

    def __new__(cls, *_: object) -> _Index:
        raise _Refused("a call of pandas.Index")


class _NewIndex(_Passive):
    """`_new_Index(cls, {"data": array, ...})`; the row numbers of a RangeIndex are not needed."""

    __slots__ = ("labels",)
    labels: list[Any]

    def __new__(cls, _: object, fields: Any) -> _NewIndex:
        made = super().__new__(cls)
        data = fields.get("data")
        made.labels = [] if data is None else _checked(data, _Array).values.tolist()
        return made


class _Block(_Passive):
    """`_unpickle_block(values, columns, 2)`: columns of one dtype, since pandas 1.3."""

    __slots__ = ("columns", "values")
    values: Any
    columns: Any

    def __new__(cls, values: object, columns: object, *_: object) -> _Block:
        made = super().__new__(cls)
        made.values, made.columns = values, columns
        return made


class _BlockManager(_Passive):
    """Blocks and axes: arguments since pandas 1.3, before that the state (.., {"0.14.1": {"axes", "blocks"}})."""

    __slots__ = ("axes", "blocks")
    axes: Any
    blocks: list[_Block]

    def __new__(cls, blocks: Any = (), axes: Any = (), *_: object) -> _BlockManager:
        made = super().__new__(cls)
        made.blocks, made.axes = [_checked(block, _Block) for block in blocks], axes
        return made

    def __setstate__(self, state: Any) -> None:
        content = state[3]["0.14.1"]
        self.axes = content["axes"]
        self.blocks = [_Block(block["values"], block["mgr_locs"]) for block in content["blocks"]]


class _DataFrame(_Passive):
    """The table: its manager stands under "_data", since pandas 1.1 under "_mgr"."""

    __slots__ = ("manager",)
    manager: _BlockManager

    def __new__(cls, *_: object) -> _DataFrame:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.manager = _checked(state["_mgr"] if "_mgr" in state else state["_data"], _BlockManager)

    def columns(self) -> dict[str, Column]:
        """Name -> values, in the order of the table."""
        names = [str(name) for name in _checked(self.manager.axes[0], _NewIndex).labels]
        found: dict[str, Column] = {}
        for block in self.manager.blocks:
            places = block.columns
            if not isinstance(places, slice):
                places = _checked(places, _Array).values
            values = _checked(block.values, _Array).values
            chosen = np.arange(len(names))[places]
            if values.ndim != 2 or len(values) != len(chosen):
                raise _Refused(f"a block of shape {values.shape} for {len(chosen)} columns")
            for place, row in zip(chosen, values, strict=True):
                found[names[place]] = np.ascontiguousarray(row)
        if set(found) != set(names) or len({len(column) for column in found.values()}) > 1:
            raise _Refused(f"blocks that do not fill the columns {names}")
        return {name: found[name] for name in names}


def _checked(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"{type(value).__name__} in place of {kind.__name__.lstrip('_')}")
    return value


_NUMPY = {"_reconstruct": _Array, "_frombuffer": _FromBuffer, "scalar": _Scalar}
_ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("builtins", "slice"): slice,
    ("__builtin__", "slice"): slice,
    ("pandas.core.indexes.base", "_new_Index"): _NewIndex,
    ("pandas._libs.internals", "_unpickle_block"): _Block,
    ("pandas.core.internals.managers", "BlockManager"): _BlockManager,
    **{
        (f"numpy.{core}.{part}", name): value
        for core in ("core", "_core")
        for part in ("multiarray", "numeric")
        for name, value in _NUMPY.items()
    },
    **{(module, "DataFrame"): _DataFrame for module in ("pandas", "pandas.core.frame")},
    **{
        (module, name): _Index
        for module in (
            "pandas",
            *(f"pandas.core.indexes.{x}" for x in ("base", "range", "numeric")),
        )
        for name in ("Index", "RangeIndex", "Int64Index", "UInt64Index", "Float64Index")
    },
}


class _TableUnpickler(pickle.Unpickler):
    """An unpickler that knows the names in `_ALLOWED` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_table(path: str | Path) -> dict[str, Column]:
    """Read a gzip-compressed pickle of a pandas DataFrame.

    Nothing in the file is executed or imported, whatever it holds.

    Args:
        path: Such as `lidar/00.pkl.gz`, written by any pandas from 0.25 to 3; columns of numbers, booleans or objects.

    Returns:
        Column name -> (N,) array, in the order of the table. Objects stay Python's own strings and numbers.

    Raises:
        BadSampleError: If the file is missing or cut short, holds something else than such a table, or names
            anything that a table does not need.
    """
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadSampleError(
            f"read_table: path must be a complete .pkl.gz file, got {path} ({error}). Extract PandaSet again."
        ) from error
    if len(content) > MAX_BYTES:
        raise BadSampleError(
            f"read_table: {path} must unpack to at most {MAX_BYTES} bytes, got more; no frame is that large."
        )
    try:
        return _checked(_TableUnpickler(io.BytesIO(content)).load(), _DataFrame).columns()
    except _Refused as error:
        raise BadSampleError(
            f"read_table: {path} must hold a pandas table and nothing else, got {error}. The file was not read: it is "
            "damaged, of another format, or made to run code. Extract PandaSet again from its own archive."
        ) from error
    except Exception as error:  # damaged pickles fail anywhere, harmlessly
        raise BadSampleError(
            f"read_table: {path} must be a complete pickle of a pandas table, got {type(error).__name__}: {error}. "
            "Extract PandaSet again."
        ) from error
