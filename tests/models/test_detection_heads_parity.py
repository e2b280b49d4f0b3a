"""CenterHead, TransFusionHead and BEVSegmentationHead against mit-han-lab/bevfusion (commit db75150) on a CPU.

The golden files hold what the original modules answered, on mmcv 1.7.2 and mmdet 2.28.2, with the weights of
deterministic_weights.py and the inputs of head_scenes.py: state-dict names and shapes of the published sizes, outputs
(every 11th cell), targets, assignment costs, losses, and detections after suppression. The original's rotated overlap
needs CUDA; polygons of shapely took its place.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointlib.geometry import box_corners
from pointlib.models.bev_segmentation_head import BEVSegmentationHead
from pointlib.models.box_coding import boxes_from_published, decode_boxes, encode_boxes
from pointlib.models.center_head import CenterHead, CenterHeadOutput
from pointlib.models.detection_targets import boxes_on_grid, centre_heatmap
from pointlib.models.heatmap import draw_gaussians, gaussian_radius
from pointlib.models.hungarian_matching import HungarianMatcher
from pointlib.models.transfusion_head import TransFusionHead, TransFusionOutput
from pointlib.sensors import Detections, SceneTargets
from tests.models.deterministic_weights import fill_state_dict
from tests.models.head_scenes import IN_CHANNELS, RANGE, VOXEL, bev_map, numbers, scene

GOLDEN = Path(__file__).parents[1] / "golden"
EVERY = slice(None, None, 11)
# Both sides add the same float32 terms, at most 1,152 of them, in an order that the BLAS chooses.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
NMS_SCALE = [[1.0], [1.0, 1.0], [1.0, 1.0], [1.0], [1.0, 1.0], [2.5, 4.0]]


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads((GOLDEN / "detection_heads.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "detection_heads.npz", allow_pickle=False) as archive:
        return {name: torch.from_numpy(values) for name, values in archive.items()}


def filled(module: nn.Module) -> Any:
    fill_state_dict(module)
    return module.eval()


def distinct_scene() -> SceneTargets:
    return scene((10, 7), close=False)


def center_head(**options: Any) -> CenterHead:
    return filled(CenterHead(IN_CHANNELS, RANGE, VOXEL, **options))


def transfusion_head(**options: Any) -> TransFusionHead:
    return filled(
        TransFusionHead(
            IN_CHANNELS, RANGE, VOXEL, num_proposals=40, hidden_channels=32, num_decoder_layers=2,
            num_heads=4, ffn_channels=48, **options,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def centers() -> CenterHeadOutput:
    with torch.no_grad():
        return center_head()(bev_map())


@pytest.fixture(scope="module")
def queries() -> TransFusionOutput:
    with torch.no_grad():
        return transfusion_head()(bev_map())


def assert_close(actual: Tensor, expected: Tensor, **bounds: float) -> None:
    torch.testing.assert_close(actual, expected, **{**CLOSE, **bounds})


def assert_same_detections(
    found: Detections, golden: dict[str, Tensor], name: str, count: int
) -> None:
    """The original's detections `name` are our best, in any order where scores are equal to rounding."""
    boxes, scores = boxes_from_published(golden[f"{name}.boxes"]), golden[f"{name}.scores"]
    labels = golden[f"{name}.labels"]
    order = scores.argsort(descending=True)
    assert len(found) == count
    assert_close(found.scores[: len(scores)], scores[order])
    difference = found.boxes[:, None] - boxes
    difference[..., 6] = (difference[..., 6] + math.pi) % (2 * math.pi) - math.pi
    same = (difference.abs() <= 2e-4 * (1 + boxes.abs())).all(-1) & (
        found.labels[:, None] == labels
    )
    same &= (found.scores[:, None] - scores).abs() < 1e-5
    assert bool((same.sum(0) == 1).all()), f"{int((same.sum(0) != 1).sum())} boxes differ"


def test_boxes_are_those_of_the_original(golden: dict[str, Tensor]) -> None:
    ours, published = torch.cat(scene().boxes), golden["boxes.published"]
    assert_close(boxes_from_published(published), ours)
    assert_close(ours[:, :3], golden["boxes.gravity_center"])
    # Eight corners each, in another order.
    distance = torch.cdist(box_corners(ours), golden["boxes.corners"])
    assert float(distance.min(2).values.max()) < 2e-5
    assert float(distance.min(1).values.max()) < 2e-5


def test_gaussians_are_those_of_the_original(golden: dict[str, Tensor]) -> None:
    sizes = torch.from_numpy(numbers(7, (40, 2), 0.3, 25).astype(np.float32))
    for overlap in (0.1, 0.7):
        assert_close(gaussian_radius(sizes, overlap), golden[f"gaussian.radius_{overlap}"])
    cells = torch.tensor([[3, 4], [5, 4], [0, 22], [16, 0], [9, 11], [10, 13]])
    zeros = torch.zeros(6, dtype=torch.long)
    radii = torch.tensor([2, 3, 5, 1, 0, 30])
    drawn = draw_gaussians((1, 1, 17, 23), zeros, zeros, cells, radii)
    assert torch.equal(drawn[0, 0], golden["gaussian.heatmap"])


@pytest.mark.parametrize(
    ("name", "build", "parameters"),
    [
        ("center", lambda: CenterHead(256, (-51.2, -51.2, -5, 51.2, 51.2, 3), (0.1, 0.1, 0.2)), 1_519_686),
        ("transfusion", lambda: TransFusionHead(512, (-54, -54, -5, 54, 54, 3), (0.075, 0.075, 0.2)), 1_034_910),
        ("segmentation", lambda: BEVSegmentationHead(512), 4_723_718),
    ],
)  # fmt: skip
def test_published_checkpoints_load(
    name: str, build: Any, parameters: int, facts: dict[str, Any]
) -> None:
    with torch.device("meta"):
        head = build()
    assert {key: list(value.shape) for key, value in head.state_dict().items()} == facts[name]
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


def test_center_head_forward(centers: CenterHeadOutput, golden: dict[str, Tensor]) -> None:
    for task, maps in enumerate(centers.tasks):
        assert_close(maps.heatmap.flatten(2)[..., EVERY], golden[f"center.heatmap{task}"])
        assert_close(maps.codes.flatten(2)[..., EVERY], golden[f"center.codes{task}"])


def test_center_head_targets(golden: dict[str, Tensor]) -> None:
    head, targets = center_head(), scene()
    found = boxes_on_grid("test", targets, head.grid, 10)
    heatmap = centre_heatmap(found, head.grid, 2, 10, head.min_overlap, head.min_radius)
    assert torch.equal(heatmap, golden["center.target_heatmap"])
    codes = encode_boxes(found.boxes, head.grid)
    codes[:, :2] -= found.cells
    first = 0
    for task, names in enumerate(head.tasks):
        mine = (found.labels >= first) & (found.labels < first + len(names))
        first += len(names)
        # The original's rows of a sample are ordered by class.
        order = (found.samples[mine] * 10 + found.labels[mine]).argsort(stable=True)
        cells = found.cells[mine][order]
        assert torch.equal(cells[:, 0] * 24 + cells[:, 1], golden[f"center.target_cells{task}"])
        assert torch.equal(found.samples[mine][order], golden[f"center.target_samples{task}"])
        assert_close(codes[mine][order], golden[f"center.target_codes{task}"])


def test_center_head_losses(centers: CenterHeadOutput, facts: dict[str, Any]) -> None:
    losses = center_head().loss(centers, scene())
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        facts["center_loss"], rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rotate", {"nms_scale": NMS_SCALE}),
        ("circle", {"nms_type": "circle"}),
        (
            "mixed",
            {
                "nms_scale": NMS_SCALE,
                "nms_type": ["circle", "rotate", "rotate", "circle", "rotate", "rotate"],
            },
        ),
    ],
)
def test_center_head_decode(
    name: str,
    options: dict[str, Any],
    centers: CenterHeadOutput,
    golden: dict[str, Tensor],
    facts: dict[str, Any],
) -> None:
    found = center_head(**options).decode(centers)
    for sample in range(2):
        count = facts[f"center_{name}{sample}_count"]
        assert_same_detections(found[sample], golden, f"center.{name}{sample}", count)


def test_transfusion_forward(queries: TransFusionOutput, golden: dict[str, Tensor]) -> None:
    assert_close(queries.heatmap.flatten(2)[..., EVERY], golden["transfusion.dense_heatmap"])
    assert torch.equal(queries.query_labels, golden["transfusion.query_labels"])
    scores = golden["transfusion.query_heatmap_score"].gather(1, queries.query_labels[:, None])
    assert_close(queries.query_scores, scores[:, 0])
    logits = torch.cat([layer.logits for layer in queries.layers], 1).mT
    codes = torch.cat([layer.codes for layer in queries.layers], 1).mT
    assert_close(logits, golden["transfusion.logits"])
    assert_close(codes, golden["transfusion.codes"])


def test_transfusion_assignment(
    queries: TransFusionOutput, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    head, targets = transfusion_head(), distinct_scene()
    found = boxes_on_grid("test", targets, head.grid, 10)
    heatmap = centre_heatmap(found, head.grid, 2, 10, head.min_overlap, head.min_radius)
    assert torch.equal(heatmap, golden["transfusion.target_heatmap"])
    codes = encode_boxes(found.boxes, head.grid)
    matched = 0
    for number, layer in enumerate(queries.layers):
        match = head.matcher.match(
            layer.logits, decode_boxes(layer.codes, head.grid), found, head.grid
        )
        labels = torch.full((80,), 10)
        labels[match.queries] = found.labels[match.boxes]
        rows = slice(40 * number, 40 * (number + 1))
        assert torch.equal(labels.view(2, 40), golden["transfusion.target_labels"][:, rows])
        wanted = torch.zeros(80, 10)
        wanted[match.queries] = codes[match.boxes]
        assert_close(wanted.view(2, 40, 10), golden["transfusion.target_bbox_targets"][:, rows])
        matched += len(match.queries)
    assert matched == facts["transfusion_num_pos"]


@pytest.mark.parametrize("sample", [0, 1])
def test_assignment_cost(
    sample: int, queries: TransFusionOutput, golden: dict[str, Tensor]
) -> None:
    grid, targets = transfusion_head().grid, distinct_scene()
    boxes, labels = targets.boxes[sample], targets.labels[sample]
    layer = queries.layers[0]
    predicted = decode_boxes(layer.codes[sample], grid)
    cost = HungarianMatcher().cost(layer.logits[sample], predicted, boxes, labels, grid)
    assert_close(cost, golden[f"transfusion.cost{sample}"])
    near = boxes_from_published(golden[f"transfusion.near{sample}"])
    cost = HungarianMatcher().cost(layer.logits[sample, : len(near)], near, boxes, labels, grid)
    assert_close(cost, golden[f"transfusion.near_cost{sample}"])
    assert float(golden[f"transfusion.near_iou{sample}"].max()) > 0.5  # so that its share shows


def test_transfusion_losses(queries: TransFusionOutput, facts: dict[str, Any]) -> None:
    losses = transfusion_head().loss(queries, distinct_scene())
    original = facts["transfusion_loss"]
    expected = {
        "heatmap": original["loss_heatmap"],
        "layer0/class": original["layer_0_loss_cls"],
        "layer0/bbox": original["layer_0_loss_bbox"],
        "class": original["layer_-1_loss_cls"],
        "bbox": original["layer_-1_loss_bbox"],
    }
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("circle", {"nms_type": "circle"}),
        ("rotate", {"nms_type": "rotate"}),
    ],
)
def test_transfusion_decode(
    name: str, options: dict[str, Any], queries: TransFusionOutput, golden: dict[str, Tensor]
) -> None:
    if (
        name != "none"
    ):  # centres drawn together, as the original got them, so that some suppress others
        last = queries.layers[-1]
        codes = torch.cat([last.codes[..., :2] * 0.02, last.codes[..., 2:]], -1)
        queries = queries._replace(layers=(last._replace(codes=codes),))
    found = transfusion_head(**options).decode(queries)
    for sample in range(2):
        count = len(golden[f"transfusion.{name}{sample}.scores"])
        assert_same_detections(found[sample], golden, f"transfusion.{name}{sample}", count)
        assert (name == "none") == (count == 40)


@pytest.mark.parametrize(("name", "prescale"), [("plain", 1), ("prescaled", 2)])
def test_segmentation_head(
    name: str, prescale: int, golden: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    scopes = ([[-19.2, 19.2, 1.6]] * 2, [[-21, 14, 1.0], [-16, 12, 0.8]])
    head = filled(BEVSegmentationHead(IN_CHANNELS, *scopes, prescale_factor=prescale))
    with torch.no_grad():
        output = head(bev_map())
    probabilities = head.decode(output).flatten(2)[..., ::7]
    assert_close(probabilities, golden[f"segmentation.{name}"])
    masks = torch.from_numpy(numbers(9, tuple(output.logits.shape))) > 0.6
    for kind in ("focal", "xent"):
        head = BEVSegmentationHead(IN_CHANNELS, *scopes, loss_type=kind)
        losses = head.loss(output, SceneTargets((), (), masks))
        assert list(losses) == [f"{label}/{kind}" for label in head.classes]
        expected = facts[f"segmentation_{name}_{kind}"]
        assert [float(value) for value in losses.values()] == pytest.approx(expected, rel=1e-5)


def test_mmdetection3d_finds_the_same_boxes() -> None:
    """A second source with another box convention: mmdetection3d 1.4, projects/BEVFusion, on the same weights.

    Its head got our weights with the outputs for size in the order l, w, h, and those for the angle turned from
    -yaw - pi / 2 to yaw; then its boxes are `BOX_COLUMNS` but for the lower face, which the golden file has raised.
    """
    head = filled(
        TransFusionHead(
            IN_CHANNELS, RANGE, VOXEL, num_proposals=40, hidden_channels=32, num_heads=4,
            ffn_channels=48,
        )
    )  # fmt: skip
    with torch.no_grad():
        found = head.decode(head(bev_map()))
    with np.load(GOLDEN / "mmdet3d_transfusion.npz", allow_pickle=False) as archive:
        for sample, detections in enumerate(found):
            expected = torch.from_numpy(archive[f"boxes{sample}"])
            assert_close(detections.boxes, expected, rtol=2e-5)
            assert_close(detections.scores, torch.from_numpy(archive[f"scores{sample}"]))
            labels = torch.from_numpy(archive[f"labels{sample}"])
            assert torch.equal(detections.labels, labels)
