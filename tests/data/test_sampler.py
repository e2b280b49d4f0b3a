"""Batches do not depend on how many processes share them or where a run was resumed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointlib.data import EpochSampler, SampleKey

Batches = list[list[SampleKey]]


def counted(batches: Batches) -> list[list[int]]:
    return [[key.index for key in batch if key.counted] for batch in batches]


def test_every_sample_once_in_a_new_order_each_epoch() -> None:
    sampler = EpochSampler(10, 3, seed=1)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [3, 3, 3, 1]
        assert all(key.epoch == epoch and key.counted for batch in batches for key in batch)
        orders.append([key.index for batch in batches for key in batch])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]
    sampler.set_epoch(0)
    assert [key.index for batch in sampler for key in batch] == orders[0]
    assert [k.index for b in EpochSampler(10, 3, seed=2) for k in b] != orders[0]


def test_in_order_without_shuffle() -> None:
    assert counted(list(EpochSampler(5, 2, shuffle=False))) == [[0, 1], [2, 3], [4]]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_ranks_together_equal_one_process(
    dataset_len: int, batch_size: int, world_size: int, drop_last: bool, epoch: int
) -> None:
    total = batch_size * world_size
    if drop_last and dataset_len < total:
        with pytest.raises(ValueError, match="must fill one batch"):
            EpochSampler(dataset_len, batch_size, world_size=world_size, drop_last=True)
        return
    one = EpochSampler(dataset_len, total, drop_last=drop_last)
    one.set_epoch(epoch)
    parts = []
    for rank in range(world_size):
        sampler = EpochSampler(
            dataset_len, batch_size, rank=rank, world_size=world_size, drop_last=drop_last
        )
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == len(one)
        assert all(1 <= len(batch) <= batch_size for batch in parts[-1])
    for k, whole in enumerate(counted(list(one))):
        assert [i for part in parts for i in counted(part)[k]] == whole


def test_a_process_without_a_share_repeats_a_sample_uncounted() -> None:
    last = [list(EpochSampler(9, 1, False, rank=rank, world_size=4))[-1] for rank in range(4)]
    assert [batch[0].index for batch in last] == [8, 8, 8, 8]
    assert [batch[0].counted for batch in last] == [True, False, False, False]


@pytest.mark.parametrize("world_size", [1, 2])
def test_resume_continues_with_the_same_batches(world_size: int) -> None:
    for rank in range(world_size):

        def make(rank: int = rank) -> EpochSampler:
            return EpochSampler(23, 2, seed=5, rank=rank, world_size=world_size)

        whole = make()
        whole.set_epoch(3)
        batches = list(whole)
        for done in range(len(batches) + 1):
            resumed = make()
            resumed.load_state_dict(json.loads(json.dumps(whole.state_dict(done))))
            assert list(resumed) == batches[done:]
            assert len(resumed) == len(batches)
            assert list(resumed) == batches  # the start holds once


def test_a_new_epoch_starts_at_its_beginning() -> None:
    sampler = EpochSampler(8, 2)
    sampler.set_start(3)
    sampler.set_epoch(1)
    assert len(list(sampler)) == 4
    sampler.set_start(3)
    sampler.set_epoch(1)  # the same epoch: the start stays
    assert len(list(sampler)) == 1


def test_unused_iterators_do_not_eat_the_start() -> None:
    sampler = EpochSampler(8, 2)
    sampler.set_start(3)
    iter(sampler)  # a DataLoader makes one more than it uses
    assert len(list(sampler)) == 1


def test_the_number_of_processes_may_change_if_the_batch_does_not() -> None:
    state = EpochSampler(24, 4, world_size=2).state_dict(2)
    resumed = EpochSampler(24, 8)
    resumed.load_state_dict(state)
    assert len(list(resumed)) == 1
    with pytest.raises(ValueError, match=r"global_batch_size 8 \(now 4\)"):
        EpochSampler(24, 4).load_state_dict(state)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: EpochSampler(0, 1), "dataset_len must be at least 1, got 0"),
        (lambda: EpochSampler(5, 0), "batch_size must be at least 1"),
        (lambda: EpochSampler(5, 1, seed=-1), "seed must be at least 0"),
        (lambda: EpochSampler(5, 1, rank=2, world_size=2), r"rank must be 0\.\.1, got 2"),
        (lambda: EpochSampler(5, 6, drop_last=True), "fill one batch of 6 .* got 5"),
        (lambda: EpochSampler(5, 1).set_epoch(-1), "epoch must be at least 0"),
        (lambda: EpochSampler(5, 1).set_start(6), r"batch must be 0\.\.5, got 6"),
        (lambda: EpochSampler(5, 1).load_state_dict({"epoch": 0}), r"must have \['batch', 'seed'"),
        (
            lambda: EpochSampler(5, 1, seed=1).load_state_dict(EpochSampler(6, 1).state_dict(0)),
            r"seed 0 \(now 1\), dataset_len 6 \(now 5\)",
        ),
    ],
)
def test_wrong_use_is_refused(act: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
