"""Swin Transformer, ResNet and the necks against the original implementations, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pointlib.models.image_necks import FPN, LSSFPN, GeneralizedLSSFPN
from pointlib.models.resnet import GeneralizedResNet, ResNet
from pointlib.models.swin import SwinTransformer
from pointlib.models.swin_attention import WindowMSA
from tests.models.camera_inputs import check_answers, filled, golden_facts
from tests.models.deterministic_weights import uniform_input

# Largest difference over largest value. The same float32 terms in another order, through up to 53 layers.
RTOL = 2e-5
# Gradients pass ReLUs; where one is at its kink to rounding, one path more or less counts.
GRADIENT_RTOL = 2e-3


def tiny_swin(**changes: object) -> SwinTransformer:
    arguments: dict[str, object] = {
        "embed_dims": 8,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": 4,
        "out_indices": (0, 1),
        "drop_path_rate": 0.0,
    }
    return SwinTransformer(**arguments | changes)  # type: ignore[arg-type]


def pyramid(seed: int, channels: tuple[int, ...], height: int, width: int) -> list[Tensor]:
    return [
        uniform_input(seed + i, (2, c, -(-height // 2**i), -(-width // 2**i)))
        for i, c in enumerate(channels)
    ]


CASES: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {}


def case(name: str) -> Callable[[Callable[[], tuple[nn.Module, list[Tensor]]]], None]:
    return lambda make: CASES.update({name: make})


@case("swin")
def _swin() -> tuple[nn.Module, list[Tensor]]:
    network = filled(SwinTransformer())
    return network, network(uniform_input(1, (2, 3, 70, 106)))


@case("resnet50")
def _resnet50() -> tuple[nn.Module, list[Tensor]]:
    network = filled(ResNet(50))
    return network, network(uniform_input(2, (1, 3, 64, 80)))


@case("generalized_lss_fpn")
def _generalized_lss_fpn() -> tuple[nn.Module, list[Tensor]]:
    network = filled(GeneralizedLSSFPN((12, 24, 48), 16))
    return network, list(network(pyramid(10, (12, 24, 48), 9, 13)))


@case("fpn")
def _fpn() -> tuple[nn.Module, list[Tensor]]:
    network = filled(FPN((12, 24, 48), 16, num_outs=4))
    return network, list(network(pyramid(10, (12, 24, 48), 9, 13)))


@case("generalized_resnet")
def _generalized_resnet() -> tuple[nn.Module, list[Tensor]]:
    network = filled(GeneralizedResNet(6, [(2, 8, 2), (2, 16, 2), (2, 32, 1)]))
    return network, network(uniform_input(20, (2, 6, 24, 20)))


@case("lss_fpn")
def _lss_fpn() -> tuple[nn.Module, list[Tensor]]:
    network = filled(LSSFPN((-1, 0), (32, 8), 12, scale_factor=2))
    shapes = ((2, 8, 12, 10), (2, 16, 6, 5), (2, 32, 6, 5))
    return network, [network([uniform_input(30 + i, shape) for i, shape in enumerate(shapes)])]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_original(name: str) -> None:
    network, maps = CASES[name]()
    check_answers(name, network, maps, RTOL, GRADIENT_RTOL)


def test_published_sizes() -> None:
    swin = SwinTransformer()
    assert sum(p.numel() for p in swin.parameters()) == 27_520_506
    assert len(swin.state_dict()) == 187
    assert swin.out_channels == (192, 384, 768)
    for name, network in {
        "generalized_lss_fpn": GeneralizedLSSFPN(),
        "generalized_resnet": GeneralizedResNet(80, [(2, 128, 2), (2, 256, 2), (2, 512, 1)]),
        "lss_fpn": LSSFPN(scale_factor=2),
    }.items():
        wanted = golden_facts()[name]["published_parameters"]
        assert sum(p.numel() for p in network.parameters()) == wanted, name


def test_a_pyramid_of_the_finest_maps_alone() -> None:
    whole, finest = filled(FPN((12, 24, 48), 16)), filled(FPN((12, 24, 48), 16, num_outs=1))
    maps = pyramid(10, (12, 24, 48), 9, 13)
    assert set(finest.state_dict()) < set(whole.state_dict())
    (only,) = finest(maps)
    assert torch.equal(only, whole(maps)[0])


# Swin Transformer


def test_tokens_do_not_see_across_the_seam_of_a_shift() -> None:
    """Rolling puts the first column beside the last: a change at one end must not reach the other."""
    network = filled(tiny_swin(depths=(2,), num_heads=(2,), out_indices=(0,), patch_size=1))
    x = uniform_input(3, (1, 3, 8, 12))
    moved = x.clone()
    moved[..., 0] += 1.0
    with torch.no_grad():
        change = (network(x)[0] - network(moved)[0]).abs().amax((0, 1, 2))
    # Windows of 4: column 0 reaches 0-3, and the shifted windows -2..1 and 2..5 carry that to column 5.
    assert (change[:6] > 1e-4).all()
    assert (change[6:] == 0).all()


def test_maps_are_padded_to_whole_windows_and_cut_again() -> None:
    network = filled(tiny_swin())
    for height, width in ((1, 1), (17, 33), (64, 30)):
        first, second = network(torch.zeros(1, 3, height, width))
        assert first.shape == (1, 8, -(-height // 4), -(-width // 4))
        assert second.shape[2:] == (-(-height // 8), -(-width // 8))


def test_the_shift_mask_is_kept_for_each_size_in_turn() -> None:
    network = filled(tiny_swin())
    small, large = uniform_input(4, (1, 3, 32, 48)), uniform_input(5, (1, 3, 48, 80))
    with torch.no_grad():
        expected = [copy.deepcopy(network)(x)[1] for x in (small, large)]
        for _ in range(2):
            assert torch.equal(network(small)[1], expected[0])
            assert torch.equal(network(large)[1], expected[1])


def test_a_mask_made_in_inference_mode_serves_training() -> None:
    network = tiny_swin()
    x = uniform_input(4, (1, 3, 32, 48))
    with torch.inference_mode():
        network(x)
    network(x)[1].sum().backward()


def test_attention_equals_its_definition() -> None:
    """Softmax of q.k / sqrt(d) + bias, head by head and window by window, in float64."""
    attention = filled(WindowMSA(8, 2, 2)).double()
    windows = uniform_input(6, (1, 3, 4, 8)).double()
    mask = uniform_input(7, (3, 4, 4)).double()
    out = attention(windows, mask)
    table, places = attention.relative_position_bias_table, [(0, 0), (0, 1), (1, 0), (1, 1)]
    for w in range(3):
        q, k, v = attention.qkv(windows[0, w]).view(4, 3, 2, 4).permute(1, 2, 0, 3)
        heads = []
        for h in range(2):
            logits = q[h] @ k[h].T / 4**0.5 + mask[w]
            for i, (row, column) in enumerate(places):
                for j, (other_row, other_column) in enumerate(places):
                    entry = (row - other_row + 1) * 3 + (column - other_column + 1)
                    logits[i, j] = logits[i, j] + table[entry, h]
            heads.append(logits.softmax(1) @ v[h])
        torch.testing.assert_close(out[0, w], attention.proj(torch.cat(heads, 1)))


def test_recomputing_blocks_changes_no_gradient() -> None:
    gradients = []
    for with_cp in (False, True):
        network = filled(tiny_swin(with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.1)).train()
        torch.manual_seed(3)
        sum(x.square().sum() for x in network(uniform_input(8, (2, 3, 32, 48)))).backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one, other)


def test_drop_path_keeps_the_expected_value_and_works_in_training_only() -> None:
    block = tiny_swin(drop_path_rate=0.4).stages[1].blocks[1]
    x = torch.ones(4000, 1, 1, 1)
    kept = block._drop_path(x)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(block.eval()._drop_path(x), x)


def test_frozen_stages_do_not_learn_and_stay_in_evaluation_mode() -> None:
    network = tiny_swin(frozen_stages=1).train()
    learned = {key for key, p in network.named_parameters() if p.requires_grad}
    assert not any(key.startswith(("patch_embed.", "stages.0.", "norm0.")) for key in learned)
    assert any(key.startswith("stages.1.") for key in learned)
    assert not network.stages[0].training and network.stages[1].training


# ResNet


def test_frozen_and_evaluated_norms_of_resnet() -> None:
    network = ResNet(18, frozen_stages=1, norm_eval=True, base_channels=4).train()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network(uniform_input(9, (2, 3, 32, 32)))[-1].sum().backward()
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    for key, parameter in network.named_parameters():
        frozen = key.startswith(("conv1.", "bn1.", "layer1."))
        assert (parameter.grad is None) == frozen, key


def test_recomputing_blocks_of_resnet_changes_no_gradient() -> None:
    gradients = []
    for with_cp in (False, True):
        network = filled(ResNet(18, with_cp=with_cp, norm_eval=True, base_channels=4)).train()
        network(uniform_input(8, (2, 3, 32, 48)))[-1].square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None and other is not None
        assert torch.equal(one, other)


# All


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_gradients_and_bfloat16(backbone: str) -> None:
    network: nn.Module = tiny_swin() if backbone == "swin" else ResNet(18, base_channels=4)
    x = uniform_input(11, (2, 3, 64, 96))
    channels = [m.shape[1] for m in network(x)]
    neck = GeneralizedLSSFPN(channels, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = neck(network(x))[0]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), neck(network(x))[0], atol=0.15, rtol=0.1)
    sum(m.square().mean() for m in neck(network(x))).backward()
    for part in (network, neck):
        for key, parameter in part.named_parameters():
            gradient = parameter.grad
            assert gradient is not None and gradient.isfinite().all(), key
            assert gradient.abs().max() > 0, key


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SwinTransformer(num_heads=(3, 6)), "num_heads must have one number a stage"),
        (lambda: SwinTransformer(out_indices=(4,)), "out_indices"),
        (lambda: tiny_swin()(torch.zeros(1, 4, 8, 8)), r"images must be \(B, 3, H, W\)"),
        (lambda: ResNet(51), "depth must be one of"),
        (lambda: ResNet(50, out_indices=(5,)), "out_indices must be among"),
        (lambda: ResNet(18)(torch.zeros(3, 8, 8)), r"images must be \(B, 3, H, W\)"),
        (lambda: GeneralizedLSSFPN((8,)), "at least 2 maps"),
        (lambda: GeneralizedLSSFPN((8, 16), 4)(pyramid(0, (8, 8), 4, 4)), "maps must be"),
        (lambda: FPN((8, 16), 4)(pyramid(0, (8,), 4, 4)), "maps must be"),
        (lambda: FPN((8, 16), 4, num_outs=0), "num_outs must be at least 1"),
        (lambda: LSSFPN((-1, 0), (8, 8))(pyramid(0, (8, 4), 4, 4)), "maps must be"),
    ],
)
def test_refuses_what_it_cannot_do(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
