"""Label maps: raw dataset ids <-> train ids, class names, colours and splits, read from YAML.

The files stand in `label_maps/`; a file of one's own with the same keys works as well. A map may name another one as
its `base` and replace some of its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import yaml

from pointlib.data.sample import IGNORE_INDEX, BadSampleError

LABEL_MAP_DIR = Path(__file__).parent / "label_maps"
NAMED_MAPS = {
    "official": "semantic_kitti.yaml",
    "spvnas": "semantic_kitti_spvnas.yaml",
    "pandaset": "pandaset.yaml",
    "nuscenes_lidarseg": "nuscenes_lidarseg.yaml",
}
"""Short names that `load_label_map` takes instead of a path."""

_UNKNOWN = -1
_MAX_RAW_ID = 0xFFFF
_MERGED_KEYS = ("raw_names", "learning_map", "inverse_map", "colors", "splits")
_KEYS = ("name", "ignore_index", "class_names", *_MERGED_KEYS)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Translation between the ids of a dataset and the ids a model is trained on.

    Attributes:
        name: Name of the map.
        class_names: Name of each train id, `num_classes` of them.
        raw_names: Name of each raw id.
        train_ids: (R + 2,) int16, train id of raw id 0..R, -1 where the map has no entry; the last row stands for
            every raw id above R and is -1.
        raw_ids: (256,) uint16, raw id that is written for each train id; 0 (unlabelled) where there is none.
        colors: (256, 3) uint8 RGB of each train id; `ignore_index` is drawn in the colour of raw id 0.
        splits: Split name -> sequences.
    """

    name: str
    class_names: tuple[str, ...]
    raw_names: Mapping[int, str]
    train_ids: npt.NDArray[np.int16]
    raw_ids: npt.NDArray[np.uint16]
    colors: npt.NDArray[np.uint8]
    splits: Mapping[str, tuple[str, ...]]

    @property
    def num_classes(self) -> int:
        """Number of train ids."""
        return len(self.class_names)

    def to_train(
        self,
        raw: npt.NDArray[np.uint16],
        source: str = "labels",
        unknown: Literal["raise", "ignore"] = "raise",
    ) -> npt.NDArray[np.uint8]:
        """Translate raw ids to train ids.

        Args:
            raw: (N,) uint16 raw ids.
            source: Where they come from, for the message.
            unknown: What a raw id without an entry does: "raise", or "ignore" to make it `IGNORE_INDEX`.

        Returns:
            (N,) uint8 train ids, `IGNORE_INDEX` where the class is not trained.

        Raises:
            TypeError: If `raw` is not uint16.
            BadSampleError: If an id has no entry and `unknown` is "raise".
        """
        if raw.dtype != np.uint16:
            raise TypeError(f"LabelMap.to_train: raw must be uint16, got {raw.dtype}.")
        train = np.take(self.train_ids, raw, mode="clip")
        missing = train == _UNKNOWN
        if missing.any():
            if unknown == "raise":
                ids, counts = np.unique(raw[missing], return_counts=True)
                listed = ", ".join(
                    f"{i} ({n} points)" for i, n in zip(ids[:8], counts[:8], strict=True)
                )
                more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
                raise BadSampleError(
                    f"LabelMap.to_train: {source} must hold raw ids of the map {self.name!r}, got "
                    f"{listed}{more}. Add them to the map's learning_map, or pass "
                    'unknown_labels="ignore" to the dataset to leave them out of training and score.'
                )
            train[missing] = IGNORE_INDEX
        return train.astype(np.uint8)

    def to_raw(self, train: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint16]:
        """Translate train ids to the raw ids of the benchmark's submission layout.

        Args:
            train: (N,) integer train ids in 0..num_classes-1, or `IGNORE_INDEX`.

        Returns:
            (N,) uint16 raw ids; `IGNORE_INDEX` becomes 0.

        Raises:
            ValueError: If an id is neither a class nor `IGNORE_INDEX`.
        """
        wrong = ((train < 0) | (train >= self.num_classes)) & (train != IGNORE_INDEX)
        if wrong.any():
            raise ValueError(
                f"LabelMap.to_raw: train must be 0..{self.num_classes - 1} or {IGNORE_INDEX}, got "
                f"{np.unique(train[wrong])[:8].tolist()}. Was the model trained with another map?"
            )
        return self.raw_ids[train.astype(np.int64)]


def load_label_map(name_or_path: str | Path = "official") -> LabelMap:
    """Read a label map.

    Args:
        name_or_path: "official" (SemanticKITTI's own), "spvnas" (the looser one of mit-han-lab/spvnas), "pandaset",
            "nuscenes_lidarseg" (the 16 classes of its challenge), or the path of a YAML file with the same keys.

    Returns:
        The map.

    Raises:
        ValueError: If there is no such map, or the file breaks the format; the message names the key.
    """
    text = str(name_or_path)
    path = LABEL_MAP_DIR / NAMED_MAPS[text] if text in NAMED_MAPS else Path(text)
    if not path.is_file():
        raise ValueError(
            f"load_label_map: name_or_path must be one of {sorted(NAMED_MAPS)} or a YAML file, got "
            f"{text!r}. Copy {LABEL_MAP_DIR / 'semantic_kitti.yaml'} and edit it for your classes."
        )
    return _build(_read_yaml(path), path)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read one file and put its entries over those of its `base`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"load_label_map: {path} must be valid YAML, got {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"load_label_map: {path} must be a mapping with the keys {', '.join(_KEYS)}, got "
            f"{type(content).__name__}."
        )
    base_name = content.pop("base", None)
    if base_name is None:
        return content
    base = _read_yaml(path.parent / base_name)
    for key in _MERGED_KEYS:
        content[key] = {**base.get(key, {}), **content.get(key, {})}
    return {**base, **content}


def _build(content: dict[str, Any], path: Path) -> LabelMap:
    missing = [key for key in _KEYS if key not in content]
    unknown = [key for key in content if key not in _KEYS]
    if missing or unknown:
        raise ValueError(
            f"load_label_map: {path} must have exactly the keys {', '.join(_KEYS)}; missing "
            f"{missing}, unknown {unknown}."
        )
    if content["ignore_index"] != IGNORE_INDEX:
        raise ValueError(
            f"load_label_map: ignore_index in {path} must be {IGNORE_INDEX}, got "
            f"{content['ignore_index']}; write {IGNORE_INDEX} for ignored ids."
        )
    num_classes = len(content["class_names"])
    allowed = {*range(num_classes), IGNORE_INDEX}
    _check_ids(content["learning_map"], "learning_map", range(_MAX_RAW_ID + 1), allowed, path)
    _check_ids(content["inverse_map"], "inverse_map", allowed, range(_MAX_RAW_ID + 1), path)
    train_ids = np.full(max(content["learning_map"]) + 2, _UNKNOWN, dtype=np.int16)
    for raw, train in content["learning_map"].items():
        train_ids[raw] = train
    raw_ids = np.zeros(256, dtype=np.uint16)
    for train, raw in content["inverse_map"].items():
        raw_ids[train] = raw
    return LabelMap(
        name=content["name"],
        class_names=tuple(content["class_names"]),
        raw_names=dict(content["raw_names"]),
        train_ids=train_ids,
        raw_ids=raw_ids,
        colors=np.array(
            [content["colors"].get(int(r), (0, 0, 0)) for r in raw_ids], dtype=np.uint8
        ),
        splits={split: tuple(names) for split, names in content["splits"].items()},
    )


def _check_ids(
    entries: Mapping[Any, Any], key: str, sources: Any, targets: Any, path: Path
) -> None:
    """Raise unless every entry maps an id of `sources` to an id of `targets`."""
    for source, target in entries.items():
        if source not in sources or target not in targets:
            raise ValueError(
                f"load_label_map: {key} in {path} must map known ids to known ids, got "
                f"{source}: {target}; train ids are 0..len(class_names)-1 or {IGNORE_INDEX}, raw ids "
                f"0..{_MAX_RAW_ID}."
            )
