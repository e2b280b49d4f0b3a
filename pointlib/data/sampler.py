"""Which samples come in which batch: seeded by the epoch, shared out over processes, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

_STATE_KEYS = ("epoch", "batch", "seed", "shuffle", "dataset_len", "global_batch_size", "drop_last")


@dataclass(frozen=True)
class SampleKey:
    """What a worker needs to know to make a sample.

    Attributes:
        epoch: Epoch, second part of the sample's seed.
        index: Scan, third part of the sample's seed.
        counted: False for a sample that only fills up a process' share: its labels come out as ignored.
    """

    epoch: int
    index: int
    counted: bool = True


class EpochSampler(Sampler[list[SampleKey]]):
    """A batch sampler: `DataLoader(dataset, batch_sampler=EpochSampler(...))`.

    Each epoch has one order of all samples, from `default_rng([seed, epoch])`, cut into global batches of
    `batch_size * world_size`; a process takes its own contiguous part of each. So with 2 processes of batch
    size b the two k-th batches together are the k-th batch of one process of batch size 2b, in order.

    A last batch that is not full is dropped with `drop_last`. Otherwise it is shared out as evenly as possible; a
    process left with nothing gets one of its samples again, not `counted`, so that all processes see equally many
    batches and no point is scored twice.

    To resume, `set_epoch` and `set_start(batch)` (or `load_state_dict`): the next iteration yields the batches of that
    epoch from number `batch` on, the same as without the break. It holds for that iteration only; the next starts at 0.

    Args:
        dataset_len: Number of samples.
        batch_size: Samples of a batch of this process.
        shuffle: Whether to shuffle; otherwise in order.
        seed: Seed of the orders.
        rank: Number of this process.
        world_size: Number of processes.
        drop_last: Whether to drop a last batch that is not full. Training on several processes needs it, because an
            uncounted sample has no loss.

    Raises:
        ValueError: If a number is out of range, or there would be no batch at all.
    """

    def __init__(
        self,
        dataset_len: int,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
    ) -> None:
        for name, value, low in (
            ("dataset_len", dataset_len, 1),
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
            ("seed", seed, 0),
        ):
            if value < low:
                raise ValueError(f"EpochSampler: {name} must be at least {low}, got {value}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"EpochSampler: rank must be 0..{world_size - 1}, got {rank}.")
        self.dataset_len = dataset_len
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.epoch = 0
        self._start = 0
        if len(self) == 0:
            raise ValueError(
                f"EpochSampler: dataset_len must fill one batch of {self.global_batch_size} "
                f"({batch_size} x {world_size} processes) with drop_last, got {dataset_len}. Use a smaller "
                "batch_size, more data, or drop_last=False."
            )

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all processes."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `set_start` said."""
        if self.drop_last:
            return self.dataset_len // self.global_batch_size
        return -(-self.dataset_len // self.global_batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        # A generator on purpose: the loader calls iter() more often than it draws from the result.
        start, self._start = self._start, 0
        epoch = self.epoch
        order = self._order()
        for batch in range(start, len(self)):
            first = batch * self.global_batch_size
            yield self._share(order[first : first + self.global_batch_size], epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, from its first batch on.

        Raises:
            ValueError: If it is negative.
        """
        if epoch < 0:
            raise ValueError(f"EpochSampler.set_epoch: epoch must be at least 0, got {epoch}.")
        if epoch != self.epoch:
            self._start = 0
        self.epoch = epoch

    def set_start(self, batch: int) -> None:
        """Choose the first batch of the next iteration.

        Args:
            batch: Number of batches of this epoch that are done, 0..len(self).

        Raises:
            ValueError: If it is out of range.
        """
        if not 0 <= batch <= len(self):
            raise ValueError(f"EpochSampler.set_start: batch must be 0..{len(self)}, got {batch}.")
        self._start = batch

    def state_dict(self, batches_done: int) -> dict[str, Any]:
        """Describe a place in the epoch.

        Args:
            batches_done: Batches that were trained on. The sampler cannot know: workers fetch ahead.

        Returns:
            Plain numbers; the same on every process.
        """
        return {
            "epoch": self.epoch,
            "batch": batches_done,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "dataset_len": self.dataset_len,
            "global_batch_size": self.global_batch_size,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place `state` describes. The number of processes may differ if the global batch does not.

        Raises:
            ValueError: If a key is missing, or the state belongs to another order of samples.
        """
        missing = [key for key in _STATE_KEYS if key not in state]
        if missing:
            raise ValueError(
                f"EpochSampler.load_state_dict: state must have {missing}, got {sorted(state)}."
            )
        mine = self.state_dict(0)
        differing = [key for key in _STATE_KEYS[2:] if state[key] != mine[key]]
        if differing:
            listed = ", ".join(f"{key} {state[key]} (now {mine[key]})" for key in differing)
            raise ValueError(
                f"EpochSampler.load_state_dict: state must be of the same order of samples, got {listed}. "
                "Resume with the settings and data of the first run, or start a new run from its weights."
            )
        self.set_epoch(state["epoch"])
        self.set_start(state["batch"])

    def _order(self) -> npt.NDArray[np.int64]:
        """Return (dataset_len,) int64, the order of the epoch, the same on every process."""
        if self.shuffle:
            return np.random.default_rng([self.seed, self.epoch]).permutation(self.dataset_len)
        return np.arange(self.dataset_len)

    def _share(self, batch: npt.NDArray[np.int64], epoch: int) -> list[SampleKey]:
        """Return this process' part of a global batch."""
        base, rest = divmod(len(batch), self.world_size)
        first = self.rank * base + min(self.rank, rest)
        size = base + (self.rank < rest)
        if size == 0:
            return [SampleKey(epoch, int(batch[self.rank % len(batch)]), counted=False)]
        return [SampleKey(epoch, int(index)) for index in batch[first : first + size]]
