"""BEVSegmentationHead: where its cells lie, what it learns, precision and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pointlib.models.bev_segmentation_head import BEVGridTransform, BEVSegmentationHead
from pointlib.sensors import SceneTargets

SCOPES: dict[str, Any] = {
    "input_scope": [[-8, 8, 1.0], [-4, 8, 1.0]],
    "output_scope": [[-6, 6, 0.5], [-4, 4, 0.5]],
}


def coordinates() -> torch.Tensor:
    """(1, 2, 16, 12) map whose features are the x and y of its cells."""
    x, y = torch.arange(-7.5, 8), torch.arange(-3.5, 8)
    return torch.stack(torch.meshgrid(x, y, indexing="ij"))[None]


@pytest.mark.parametrize("prescale", [1, 2])
def test_cells_are_sampled_where_they_lie(prescale: int) -> None:
    sampled = BEVGridTransform(**SCOPES, prescale_factor=prescale)(coordinates())
    x = torch.arange(-5.75, 6, 0.5)[:, None].expand(24, 16)
    y = torch.arange(-3.75, 4, 0.5).expand(24, 16)
    inner = slice(
        2, None
    )  # the first cells lie half a cell from the map's border, where zeros begin
    torch.testing.assert_close(sampled[0, 0, :, inner], x[:, inner], rtol=0, atol=2e-5)
    torch.testing.assert_close(sampled[0, 1, :, inner], y[:, inner], rtol=0, atol=2e-5)


def test_zero_beyond_the_border() -> None:
    transform = BEVGridTransform([[0, 4, 1.0], [0, 4, 1.0]], [[-4, 8, 1.0], [0, 4, 1.0]])
    sampled = transform(torch.ones(1, 1, 4, 4))[0, 0]
    assert torch.equal(sampled[:4], torch.zeros(4, 4))
    assert torch.equal(sampled[4:8], torch.ones(4, 4))
    assert torch.equal(sampled[8:], torch.zeros(4, 4))


def test_a_small_head_learns_the_side_of_a_line() -> None:
    head = BEVSegmentationHead(2, **SCOPES, classes=("ahead", "left", "near"))
    x = torch.arange(-5.75, 6, 0.5)[:, None].expand(4, 24, 16)
    y = torch.arange(-3.75, 4, 0.5).expand(4, 24, 16)
    masks = torch.stack([x > 1, y > 0.5, x**2 + y**2 < 9], 1)
    targets = SceneTargets((), (), masks)
    # Four maps that differ in scale, so that the norm has something to learn from.
    scales = torch.tensor([0.8, 0.9, 1.0, 1.1])
    bev = coordinates() / 8 * scales[:, None, None, None]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(120):
        loss = torch.stack(list(head.loss(head(bev), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = head.decode(head(bev)) > 0.5
    iou = (found & masks).sum((0, 2, 3)) / (found | masks).sum((0, 2, 3))
    assert float(iou[:2].min()) > 0.85


def test_autocast_and_gradients() -> None:
    head = BEVSegmentationHead(8, **SCOPES).eval()
    bev, masks = torch.randn(2, 8, 16, 12), torch.rand(2, 6, 24, 16) > 0.5
    whole = head.loss(head(bev), SceneTargets((), (), masks))
    torch.stack(list(whole.values())).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    with torch.autocast("cpu", torch.bfloat16):
        output = head(bev.bfloat16())
        half = head.loss(output, SceneTargets((), (), masks))
    assert output.logits.dtype == torch.float32
    for name, value in half.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(whole[name].item(), rel=0.02)


def test_bad_input() -> None:
    head = BEVSegmentationHead(8, **SCOPES)
    with pytest.raises(ValueError, match=r"bev must be \(B, 8, 16, 12\).*got \(1, 8, 12, 16\)"):
        head(torch.zeros(1, 8, 12, 16))
    output = head.eval()(torch.zeros(1, 8, 16, 12))
    with pytest.raises(ValueError, match="got no map_masks; the dataset must rasterise"):
        head.loss(output, SceneTargets((), ()))
    with pytest.raises(ValueError, match=r"map_masks \(1, 6, 24, 16\), got map_masks \(1, 4, 24"):
        head.loss(output, SceneTargets((), (), torch.zeros(1, 4, 24, 16)))
    with pytest.raises(ValueError, match="'focal' or 'xent', got 'dice'"):
        BEVSegmentationHead(8, **SCOPES, loss_type="dice")
    with pytest.raises(ValueError, match="output_scope must hold a whole number of cells"):
        BEVSegmentationHead(8, **{**SCOPES, "output_scope": [[-6, 6, 0.7], [-4, 4, 0.5]]})
