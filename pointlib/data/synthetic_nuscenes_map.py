"""The maps of a synthetic nuScenes dataset: the expansion's vector layers (version 1.3) and two pictures of each map.

Fields of the layers are those `nuscenes.map_expansion.map_api` reads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pointlib.data.synthetic_nuscenes_layout import MAP_MASKS
from pointlib.data.synthetic_nuscenes_scene import NuScenesScene
from pointlib.data.synthetic_nuscenes_shapes import Crossing, StreetShapes, load_shapely
from pointlib.data.synthetic_nuscenes_street import STOP_LINE
from pointlib.data.synthetic_nuscenes_tables import token
from pointlib.files import write_file

LAYERS = (
    "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane", "ped_crossing", "walkway",
    "stop_line", "carpark_area", "road_divider", "lane_divider", "traffic_light", "lane_connector",
)  # fmt: skip

MASK_SCALE, BASEMAP_SCALE = 10, 2
"""Pixels a metre."""


def write_maps(
    root: Path,
    scenes: Mapping[str, Sequence[tuple[str, NuScenesScene]]],
    sizes: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Write vector layers, mask and basemap of every location.

    Args:
        root: of the dataset. scenes: name and scene of all that lie on each location's map.
        sizes: width and height of each map [m].

    Returns:
        The file name of each location's mask, relative to the root.
    """
    written = {}
    for location, members in scenes.items():
        expansion = MapBuilder(location, sizes[location])
        shapes = [(name, StreetShapes(scene.street)) for name, scene in members]
        for name, shape in shapes:
            expansion.add_street(name, shape)
        path = root / "maps" / "expansion" / f"{location}.json"
        write_file(path, json.dumps(expansion.layers))
        written[location] = f"maps/{MAP_MASKS[location]}.png"
        write_file(root / written[location], _mask(shapes, sizes[location]))
        basemap = root / "maps" / "basemap" / f"{location}.png"
        write_file(basemap, _basemap(shapes, sizes[location]))
    return written


class MapBuilder:
    """The vector layers of one location, growing street by street.

    Args:
        location: of the map. size: width and height [m].
    """

    def __init__(self, location: str, size: tuple[float, float]) -> None:
        self.location = location
        self.layers: dict[str, Any] = {name: [] for name in LAYERS}
        self.layers |= {
            "version": "1.3",
            "canvas_edge": list(size),
            "arcline_path_3": {},
            "connectivity": {},
        }

    def _add(self, layer: str, **fields: Any) -> str:
        own = token("map", self.location, layer, len(self.layers[layer]))
        self.layers[layer].append({"token": own, **fields})
        return own

    def _nodes(self, points: Iterable[Sequence[float]]) -> list[str]:
        return [self._add("node", x=round(float(x), 3), y=round(float(y), 3)) for x, y in points]

    def _line(self, points: np.ndarray) -> str:
        return self._add("line", node_tokens=self._nodes(points))

    def _polygon(self, shape: Any) -> str:
        holes = [{"node_tokens": self._nodes(ring.coords[:-1])} for ring in shape.interiors]
        return self._add(
            "polygon", exterior_node_tokens=self._nodes(shape.exterior.coords[:-1]), holes=holes
        )

    def add_street(self, name: str, shapes: StreetShapes) -> None:
        """Add everything of one scene's street."""
        area = self._add(
            "drivable_area",
            polygon_tokens=[self._polygon(part) for part in pieces(shapes.drivable)],
        )
        for part in pieces(shapes.walkways):
            self._add("walkway", polygon_token=self._polygon(part))
        segments, blocks = self._add_roads(shapes, area)
        for part in pieces(shapes.parking):
            self._add(
                "carpark_area", polygon_token=self._polygon(part), orientation=0.0,
                road_block_token=blocks[0][0],
            )  # fmt: skip
        for crossing in shapes.crossings:
            self._add_crossing(shapes, crossing, segments[0], blocks[0][0])
        for line in shapes.road_dividers():
            self._add("road_divider", line_token=self._line(line), road_segment_token=segments[0])
        for line, look in shapes.lane_dividers():
            line_token = self._line(line)
            kinds = [
                {"node_token": node, "segment_type": look}
                for node in self.layers["line"][-1]["node_tokens"]
            ]
            self._add("lane_divider", line_token=line_token, lane_divider_segments=kinds)
        self._add_lanes(shapes, blocks)

    def _add_roads(
        self, shapes: StreetShapes, area: str
    ) -> tuple[list[str], list[tuple[str, str]]]:
        """Road segments; and, for each section, the block of the street's and of the opposite direction."""
        half, segments, blocks = shapes.street.half_width, [], []
        for start, end in shapes.sections:
            segment = self._add(
                "road_segment", polygon_token=self._polygon(shapes.band(start, end, -half, half)),
                is_intersection=False, drivable_area_token=area,
            )  # fmt: skip
            segments.append(segment)
            pair = []
            for sign in (1.0, -1.0):
                ends = (start, end) if sign > 0 else (end, start)
                edges = [
                    self._line(_across(shapes, station, 0.0, -sign * half)) for station in ends
                ]
                shape = shapes.band(start, end, *sorted((0.0, -sign * half)))
                fields = {"from_edge_line_token": edges[0], "to_edge_line_token": edges[1]}
                polygon = self._polygon(shape)
                pair.append(
                    self._add(
                        "road_block", polygon_token=polygon, **fields, road_segment_token=segment
                    )
                )
            blocks.append((pair[0], pair[1]))
        for crossing in shapes.crossings:
            ends = (crossing.station - crossing.half_width, crossing.station + crossing.half_width)
            self._add(
                "road_segment", polygon_token=self._polygon(shapes.band(*ends, -half, half)),
                is_intersection=True, drivable_area_token=area,
            )  # fmt: skip
        return segments, blocks

    def _add_crossing(
        self, shapes: StreetShapes, crossing: Crossing, segment: str, block: str
    ) -> None:
        """Zebra crossings, stop lines and traffic lights around a side road."""
        for shape in shapes.zebras(crossing):
            self._add(
                "ped_crossing", polygon_token=self._polygon(shape), road_segment_token=segment
            )
        for number, shape in enumerate(shapes.stop_lines(crossing)):
            lights = []
            if number < 2:
                sign = 2.0 * number - 1.0
                station = crossing.station + sign * (crossing.half_width + STOP_LINE[1])
                lateral = sign * (shapes.street.half_width + 0.4)
                lights = [self._traffic_light(shapes, station, lateral, sign, block)]
            self._add(
                "stop_line", polygon_token=self._polygon(shape),
                stop_line_type="TRAFFIC_LIGHT" if lights else "STOP_SIGN", ped_crossing_tokens=[],
                traffic_light_tokens=lights, road_block_token=block,
            )  # fmt: skip

    def _traffic_light(
        self, shapes: StreetShapes, station: float, lateral: float, sign: float, block: str
    ) -> str:
        """A light on a pole that faces the traffic of one direction."""
        x, y, heading = shapes.street.at(station, lateral)
        facing = heading + (0.0 if sign > 0 else np.pi)
        points = np.array([[x, y], [x + 0.3 * np.cos(facing), y + 0.3 * np.sin(facing)]])
        lamps = [
            {
                "color": color,
                "shape": "CIRCLE",
                "rel_pos": {
                    "tx": 0.0,
                    "ty": 0.0,
                    "tz": 0.3 - 0.3 * k,
                    "rx": 0.0,
                    "ry": 0.0,
                    "rz": 0.0,
                },
                "to_road_block_tokens": [],
            }
            for k, color in enumerate(("RED", "YELLOW", "GREEN"))
        ]
        return self._add(
            "traffic_light", line_token=self._line(points), traffic_light_type="VERTICAL",
            from_road_block_token=block, items=lamps,
            pose={"tx": x, "ty": y, "tz": 3.0, "rx": 0.0, "ry": 0.0, "rz": float(facing)},
        )  # fmt: skip

    def _add_lanes(self, shapes: StreetShapes, blocks: Sequence[tuple[str, str]]) -> None:
        """Lanes of all sections and the connectors between them over the intersections."""
        sections = shapes.sections
        for sign in (1, -1):
            order = list(range(len(sections)))[::sign]
            for lane in range(shapes.layout.lanes):
                before = ""
                for position, number in enumerate(order):
                    start, end = sections[number][::sign]
                    if position:
                        last = sections[order[position - 1]][::sign][1]
                        before = self._lane(
                            shapes, "lane_connector", lane, sign, (last, start), before
                        )
                    before = self._lane(shapes, "lane", lane, sign, (start, end), before)

    def _lane(
        self, shapes: StreetShapes, layer: str, lane: int, sign: int, ends: tuple[float, float],
        before: str,
    ) -> str:  # fmt: skip
        """A lane or connector driven from one station to the other; linked to what comes before."""
        width = shapes.layout.lane_width
        inner, outer = -sign * lane * width, -sign * (lane + 1) * width
        fields: dict[str, Any] = {"polygon_token": self._polygon(shapes.band(*ends, inner, outer))}
        if layer == "lane":
            borders = [self._nodes(shapes.line(*ends, lateral)) for lateral in (inner, outer)]
            looks = (
                "DOUBLE_SOLID_YELLOW" if lane == 0 else "DOUBLE_DASHED_WHITE",
                "SINGLE_SOLID_WHITE",
            )
            for side, nodes, look in zip(("left", "right"), borders, looks, strict=True):
                fields[f"{side}_lane_divider_segments"] = [
                    {"node_token": node, "segment_type": look} for node in nodes
                ]
            fields |= {
                "lane_type": "CAR",
                "from_edge_line_token": self._line(_across(shapes, ends[0], inner, outer)),
                "to_edge_line_token": self._line(_across(shapes, ends[1], inner, outer)),
            }
        own = self._add(layer, **fields)
        centre = shapes.line(*ends, (inner + outer) / 2)
        self.layers["arcline_path_3"][own] = _arcs(centre)
        self.layers["connectivity"][own] = {"incoming": [before] if before else [], "outgoing": []}
        if before:
            self.layers["connectivity"][before]["outgoing"].append(own)
        return own


def pieces(shape: Any) -> list[Any]:
    """The polygons of a shape without slips and necks thinner than 0.1 m, corners on a grid of 1 mm."""
    opened = shape.buffer(-0.05, join_style="mitre").buffer(0.05, join_style="mitre")
    snapped = load_shapely().set_precision(opened.simplify(0.01), 0.001)
    parts = getattr(snapped, "geoms", [snapped])
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0.3]


def _across(shapes: StreetShapes, station: float, inner: float, outer: float) -> np.ndarray:
    return np.array([shapes.street.at(station, lateral)[:2] for lateral in (inner, outer)])


def _arcs(points: np.ndarray, every: int = 5) -> list[dict[str, Any]]:
    """A line as circular arcs, in the form of the devkit's arc-line paths."""
    knots = points[[*range(0, len(points) - 1, every), len(points) - 1]]
    chords = np.diff(knots, axis=0)
    course = np.unwrap(np.arctan2(chords[:, 1], chords[:, 0]))
    turns = np.gradient(course) if len(course) > 1 else np.zeros(1)
    arcs = []
    for start, end, chord, heading, turn in zip(
        knots[:-1], knots[1:], chords, course, turns, strict=True
    ):
        long = float(np.linalg.norm(chord))
        bent = abs(turn) > 1e-6
        way = long * (turn / 2) / np.sin(turn / 2) if bent else long
        arcs.append(
            {
                "start_pose": [*start.tolist(), float(heading - turn / 2)],
                "end_pose": [*end.tolist(), float(heading + turn / 2)],
                "shape": "LSL" if turn >= 0 else "RSR",
                "radius": float(way / abs(turn)) if bent else 999.999,
                "segment_length": [float(way), 0.0, 0.0] if bent else [0.0, long, 0.0],
            }
        )
    return arcs


def _draw(
    picture: Image.Image, shape: Any, colour: Any, background: Any, scale: float, height: float
) -> None:
    """Fill a shape; row 0 of the picture is the map's northern edge."""
    brush = ImageDraw.Draw(picture)
    for part in pieces(shape):
        for ring, fill in (
            (part.exterior, colour),
            *((hole, background) for hole in part.interiors),
        ):
            corners = np.asarray(ring.coords)
            rows = np.stack([corners[:, 0], height - corners[:, 1]], axis=1) * scale
            brush.polygon([(float(x), float(y)) for x, y in rows], fill=fill)


def _mask(shapes: Sequence[tuple[str, StreetShapes]], size: tuple[float, float]) -> bytes:
    """PNG: 255 where there is road or sidewalk."""
    picture = Image.new("L", (round(size[0] * MASK_SCALE), round(size[1] * MASK_SCALE)), 0)
    for _, street in shapes:
        _draw(picture, street.drivable.union(street.walkways), 255, 0, MASK_SCALE, size[1])
    return _png(picture)


def _basemap(shapes: Sequence[tuple[str, StreetShapes]], size: tuple[float, float]) -> bytes:
    """PNG in colours."""
    ground = (236, 238, 230)
    picture = Image.new(
        "RGB", (round(size[0] * BASEMAP_SCALE), round(size[1] * BASEMAP_SCALE)), ground
    )
    for _, street in shapes:
        _draw(picture, street.walkways, (205, 198, 188), ground, BASEMAP_SCALE, size[1])
        _draw(picture, street.drivable, (150, 150, 156), (205, 198, 188), BASEMAP_SCALE, size[1])
        for crossing in street.crossings:
            for zebra in street.zebras(crossing):
                _draw(picture, zebra, (245, 245, 245), (0, 0, 0), BASEMAP_SCALE, size[1])
    return _png(picture)


def _png(picture: Image.Image) -> bytes:
    packed = io.BytesIO()
    picture.save(packed, "PNG", compress_level=3)
    return packed.getvalue()
