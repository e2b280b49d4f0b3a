"""TransFusionHead: proposals, assignment against all permutations, batches, classes, precision and bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from pointlib.models.box_coding import decode_boxes, encode_boxes
from pointlib.models.detection_targets import boxes_on_grid
from pointlib.models.hungarian_matching import HungarianMatcher
from pointlib.models.query_decoder import PositionEmbedding, QueryDecoderLayer
from pointlib.models.transfusion_head import QueryPredictions, TransFusionHead, TransFusionOutput
from pointlib.sensors import SceneTargets
from tests.models.head_scenes import IN_CHANNELS, RANGE, VOXEL, bev_map, scene

NONE = torch.zeros(0, dtype=torch.long)


def head(**options: Any) -> TransFusionHead:
    sizes = {"num_proposals": 30, "hidden_channels": 16, "num_heads": 2, "ffn_channels": 24}
    return TransFusionHead(IN_CHANNELS, RANGE, VOXEL, **{**sizes, **options})


def certain_output(network: TransFusionHead, targets: SceneTargets) -> TransFusionOutput:
    """What a perfect network says: its first queries hold the boxes, in order, the others are empty."""
    batch_size, queries = len(targets.boxes), 30
    logits = torch.full((batch_size, queries, 10), -8.0)
    codes = torch.randn(batch_size, queries, 10)
    query_labels = torch.zeros(batch_size, queries, dtype=torch.long)
    for sample, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
        codes[sample, : len(boxes)] = encode_boxes(boxes, network.grid)
        logits[sample, torch.arange(len(boxes)), labels] = 4.0
        query_labels[sample, : len(boxes)] = labels
    scores = torch.full((batch_size, queries), 0.5)
    heatmap = torch.full((batch_size, 10, *network.grid.size), -8.0)
    return TransFusionOutput(heatmap, query_labels, scores, (QueryPredictions(logits, codes),))


def test_targets_decode_to_the_boxes() -> None:
    wide = (-8.0, -19.2, -5.0, 30.4, 0.0, 3.0)  # 24 x 12 cells
    network = TransFusionHead(IN_CHANNELS, wide, VOXEL, score_threshold=0.1)
    targets = scene()
    shifted = tuple(
        box * torch.tensor([1, 0.5, 1, 1, 1, 1, 1, 1, 1])
        + torch.tensor([11.2, -9.6, 0, 0, 0, 0, 0, 0, 0])
        for box in targets.boxes
    )
    targets = SceneTargets(shifted, targets.labels)
    output = certain_output(network, targets)
    losses = network.loss(output, targets)
    assert float(losses["bbox"]) < 1e-5 and float(losses["class"]) < 1e-4
    for detections, boxes, labels in zip(
        network.decode(output), targets.boxes, targets.labels, strict=True
    ):
        assert len(detections) == len(boxes)
        order = torch.cdist(boxes, detections.boxes).argmin(1)
        torch.testing.assert_close(detections.boxes[order], boxes, rtol=1e-5, atol=2e-5)
        assert torch.equal(detections.labels[order], labels)
        expected = torch.tensor(4.0).sigmoid() * 0.5
        assert torch.allclose(detections.scores, expected)


def proposals(network: TransFusionHead, peaks: dict[tuple[int, int, int], float]) -> set[Any]:
    """Class and cell of every query with a score above 0.1, for these probabilities of class and cell."""
    heatmap = torch.full((1, 10, 24, 24), -9.0)
    for place, probability in peaks.items():
        heatmap[(0, *place)] = math.log(probability / (1 - probability))
    labels, cells, scores = network._propose(heatmap)
    rows = zip(labels[0].tolist(), cells[0].tolist(), scores[0].tolist(), strict=True)
    return {(label, cell // 24, cell % 24) for label, cell, score in rows if score > 0.1}


def test_proposals_are_local_maxima_within_their_class() -> None:
    peaks = {
        (0, 5, 7): 0.9, (0, 5, 8): 0.8, (0, 6, 6): 0.7,  # neighbours: one query
        (0, 5, 9): 0.6, (1, 5, 8): 0.5,  # beside a cell that is no maximum; another class
        (2, 0, 7): 0.9, (2, 12, 23): 0.9, (2, 1, 22): 0.9,  # the outer cells propose nothing
        (8, 5, 7): 0.9, (8, 5, 8): 0.8, (9, 0, 0): 0.7,  # but pedestrians and cones everywhere
    }  # fmt: skip
    expected = {(0, 5, 7), (1, 5, 8), (2, 1, 22), (8, 5, 7), (8, 5, 8), (9, 0, 0)}
    assert proposals(head(), peaks) == expected
    everywhere = proposals(head(small_classes=head().class_names), peaks)
    assert everywhere == {*peaks}
    assert proposals(head(peak_size=1, small_classes=()), peaks) == {*peaks}
    assert (9, 0, 0) not in proposals(head(small_classes=("pedestrian",)), peaks)
    assert proposals(head(num_proposals=1), {(3, 4, 5): 0.6, (4, 4, 5): 0.7}) == {(4, 4, 5)}


def test_fewer_cells_than_proposals() -> None:
    small = TransFusionHead(
        IN_CHANNELS, (0, 0, -5, 6.4, 3.2, 3), VOXEL, num_proposals=500, hidden_channels=16,
        num_heads=2,
    )  # fmt: skip
    output = small(bev_map()[:, :, :4, :2])
    assert output.query_scores.shape == (2, 80)
    assert len(small.decode(output)) == 2


def test_the_assignment_is_the_cheapest_of_all() -> None:
    network, targets = head(), scene((4, 3), close=False)
    logits = torch.randn(2, 5, 10)
    codes = encode_boxes(torch.cat([targets.boxes[0], targets.boxes[0][:1] * 0.9]), network.grid)
    predicted = decode_boxes(codes + torch.randn(2, 5, 10) * 0.3, network.grid)
    found = boxes_on_grid("test", targets, network.grid, 10)
    matcher = HungarianMatcher()
    matches = matcher.match(logits, predicted, found, network.grid)
    assert len(matches.queries) == 7
    for sample, first in ((0, 0), (1, 4)):
        boxes, labels = targets.boxes[sample], targets.labels[sample]
        cost = matcher.cost(logits[sample], predicted[sample], boxes, labels, network.grid)
        cheapest = min(
            sum(float(cost[query, box]) for box, query in enumerate(queries))
            for queries in itertools.permutations(range(5), len(boxes))
        )
        mine = matches.queries // 5 == sample
        pairs = zip(matches.queries[mine] % 5, matches.boxes[mine] - first, strict=True)
        assert sum(float(cost[pair]) for pair in pairs) == pytest.approx(cheapest, abs=1e-6)


def test_more_boxes_than_queries() -> None:
    network = head(num_proposals=5)
    losses = network.loss(network(bev_map()), scene())
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("layers", [1, 2])
def test_every_parameter_learns_also_beside_an_empty_sample(layers: int) -> None:
    network = head(num_decoder_layers=layers)
    targets = scene()
    targets = SceneTargets((targets.boxes[0][:0], targets.boxes[1]), (NONE, targets.labels[1]))
    losses = network.loss(network(bev_map()), targets)
    assert len(losses) == 1 + 2 * layers
    torch.stack(list(losses.values())).sum().backward()
    # A bias that normalisation or softmax takes away learns nothing.
    idle = ("posembed.position_embedding_head.0.bias",)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith(idle), name


def test_no_boxes_at_all() -> None:
    network = head()
    losses = network.loss(network(bev_map()), SceneTargets((torch.zeros(0, 9),) * 2, (NONE,) * 2))
    assert float(losses["bbox"].detach()) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_unknown_velocities_count_nothing() -> None:
    network, targets = head(), scene()
    output = network(bev_map())
    boxes = tuple(
        torch.cat([box[:, :7], torch.full_like(box[:, 7:], torch.nan)], 1) for box in targets.boxes
    )
    unknown = network.loss(output, SceneTargets(boxes, targets.labels))
    known = network.loss(output, targets)
    assert float(unknown["bbox"].detach()) < float(known["bbox"].detach())
    assert float(unknown["class"].detach()) == float(known["class"].detach())


def test_other_classes_without_velocity() -> None:
    names = ("Car", "Pedestrian", "Cyclist")
    network = head(class_names=names, small_classes=names[1:], velocity=False)
    targets = scene()
    labels = tuple(label % 3 for label in targets.labels)
    output = network(bev_map())
    losses = network.loss(output, SceneTargets(targets.boxes, labels))
    torch.stack(list(losses.values())).sum().backward()
    (detections, _) = network.decode(output)
    assert detections.boxes[:, :7].isfinite().all() and detections.boxes[:, 7:].isnan().all()


def test_samples_of_a_batch_do_not_touch() -> None:
    network = head().eval()
    bev = bev_map()
    with torch.no_grad():
        both = network.decode(network(bev))
        for sample in range(2):
            (alone,) = network.decode(network(bev[sample : sample + 1]))
            assert torch.equal(alone.labels, both[sample].labels)
            torch.testing.assert_close(alone.boxes, both[sample].boxes, rtol=1e-4, atol=1e-4)
            assert torch.equal(alone.scores, alone.scores.sort(descending=True).values)
    limited = head(max_detections=3)
    assert [len(found) for found in limited.decode(network(bev))] == [3, 3]


def test_autocast_and_repetition() -> None:
    network = head().eval()
    bev, targets = bev_map(), scene()
    whole = network.loss(network(bev), targets)
    assert whole == network.loss(network(bev), targets)  # bit for bit
    with torch.autocast("cpu", torch.bfloat16):
        output = network(bev)
        half = network.loss(output, targets)
        (detections, _) = network.decode(output)
    assert detections.boxes.dtype == output.heatmap.dtype == torch.float32
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(whole[name].detach()), rel=0.1)


def test_positions_keep_their_precision_under_autocast() -> None:
    embedding = PositionEmbedding(8).eval()
    places = torch.tensor([[[170.25, 3.0], [170.5, 3.0]]])
    with torch.no_grad():
        embedding.position_embedding_head[1].running_mean.copy_(
            embedding.position_embedding_head[0](places.mT).mean((0, 2))
        )
        exact = embedding(places)
        with torch.autocast("cpu", torch.bfloat16):
            half = embedding(places).float()
    step = exact[0, 1] - exact[0, 0]
    bound = 0.05 * float(step.abs().max())
    torch.testing.assert_close(half[0, 1] - half[0, 0], step, rtol=0, atol=bound)


def test_the_decoder_adds_positions_to_values() -> None:
    # One query and one key: attention returns the value, whatever query and key say.
    layer = QueryDecoderLayer(8, 2, 16, 0.0).eval()
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    near, far = torch.zeros(1, 1, 2), torch.full((1, 1, 2), 9.0)
    with torch.no_grad():
        assert not torch.allclose(layer(query, key, near, near), layer(query, key, near, far))


def test_bad_input() -> None:
    network = head()
    with pytest.raises(ValueError, match=r"bev must be \(B, 8, 24, 24\)"):
        network(bev_map()[..., :12])
    output, targets = network(bev_map()), scene()
    wrong = SceneTargets(targets.boxes, (targets.labels[0] - 1, targets.labels[1]))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 10\), .*got -1 to 9"):
        network.loss(output, wrong)
    broken = output._replace(
        layers=(output.layers[0]._replace(logits=output.layers[0].logits * torch.nan),)
    )
    with pytest.raises(FloatingPointError, match="diverged"):
        network.loss(broken, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_classes": ["pedestrain"]}, "small_classes and nms_classes must be among"),
        ({"nms_classes": ["wolf"]}, "wolf"),
        ({"nms_type": "soft"}, "nms_type must be"),
        ({"peak_size": 2}, "peak_size must be odd"),
        ({"num_proposals": 0}, "num_proposals >= 1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head(**options)
