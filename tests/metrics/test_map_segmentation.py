"""Map IoU against its definition, counted cell by cell."""

from __future__ import annotations

import pytest
import torch

from pointlib.metrics.map_segmentation import THRESHOLDS, MapIoU


def test_equals_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(3, 2, 9, 7, generator=generator) < 0.4
    noise = torch.rand(3, 2, 9, 7, generator=generator)
    probabilities = 0.5 * masks.float() + 0.5 * noise
    metric = MapIoU(("road", "walkway"))
    for sample in range(3):
        metric.update(probabilities[sample : sample + 1], masks[sample : sample + 1])
    scores = metric.compute()
    for label in range(2):
        for column, threshold in enumerate(THRESHOLDS):
            found, truth = probabilities[:, label] >= threshold, masks[:, label]
            expected = (found & truth).sum() / ((found | truth).sum() + 1e-7)
            assert scores.iou[label, column] == pytest.approx(float(expected), abs=1e-7)
    assert scores.miou == pytest.approx(float(scores.iou.max(1).values.mean()))
    assert scores.as_dict()["classes"]["road"]["iou"] == pytest.approx(float(scores.iou[0].max()))
    assert "walkway" in scores.table()


def test_truth_itself_scores_one_and_parts_add_up() -> None:
    masks = torch.rand(4, 1, 5, 5) < 0.5
    whole, part = MapIoU(("road",)), MapIoU(("road",))
    whole.update(masks[:2].float(), masks[:2])
    part.update(masks[2:].float(), masks[2:])
    whole.merge(part)
    assert whole.compute().miou == pytest.approx(1.0)
    assert int(whole.counts[0, 0, 0]) == int(masks.sum())


def test_a_class_that_is_nowhere_scores_zero() -> None:
    metric = MapIoU(("road", "divider"))
    metric.update(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.bool))
    assert metric.compute().miou == 0.0


def test_other_shapes_are_refused() -> None:
    metric = MapIoU(("road",))
    with pytest.raises(ValueError, match=r"must both be \(B, 1, X, Y\)"):
        metric.update(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.bool))
