"""A training step of SPVCNN, and the same step by the torch composition in a process of its own.

POINTLIB_CPU is read when pointlib is imported, so one process cannot have both. The other one answers over a pipe, one
request at a time, so that the calls still alternate.

    POINTLIB_CPU=composition python benchmarks/training.py BATCH.pt keep    # what CompositionProcess starts
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import Case
from scenes import ROOT, Drive, batch_of
from torch import Tensor
from torch.nn import functional

from pointlib.models import count_macs, create_model
from pointlib.ops.memory import keep_freed_memory
from pointlib.tensor import SparseTensor

NUM_CLASSES = 19
WIDTH = 0.5
AGREEING_STEPS = 3


def make_batch(drive: Drive) -> dict[str, Tensor]:
    """Both scans of a drive, with random labels."""
    scene = batch_of(drive)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(NUM_CLASSES, (len(scene.coords),), generator=generator)
    return {"coords": scene.coords, "feats": scene.feats, "labels": labels}


class TrainingStep:
    """Forward, backward and SGD on one batch; its maps are built at every step, as for new scans.

    Args:
        batch: As of `make_batch`.
        autocast: Whether to the bfloat16 of torch.autocast.
    """

    def __init__(self, batch: dict[str, Tensor], autocast: bool = False) -> None:
        self._batch, self._autocast = batch, autocast
        self._restart()

    def _restart(self) -> None:
        torch.manual_seed(0)
        self.model = create_model("spvcnn", cr=WIDTH, num_classes=NUM_CLASSES)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def __call__(self) -> float:
        """The loss before the step."""
        x = SparseTensor(self._batch["feats"], self._batch["coords"])
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            logits = self.model(x)
        loss = functional.cross_entropy(logits.float(), self._batch["labels"])
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def losses(self) -> list[float]:
        """The first losses of a training from the start."""
        self._restart()
        return [self() for _ in range(AGREEING_STEPS)]


class CompositionProcess:
    """The same training step with POINTLIB_CPU=composition, in a `with` statement.

    Args:
        batch: As of `make_batch`.
        keep_memory: Whether the process keeps what it frees.
    """

    def __init__(self, batch: dict[str, Tensor], keep_memory: bool) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "batch.pt")
        torch.save(batch, path)
        folders = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            "POINTLIB_CPU": "composition",
            "PYTHONPATH": os.pathsep.join(f for f in folders if f),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(path), "keep" if keep_memory else "return"],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> CompositionProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()  # the end of its input ends it
        self._folder.cleanup()

    def ask(self, request: str) -> Any:
        """Send "step" or "losses" and wait for the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"CompositionProcess: {request}: the process ended, exit code {self._process.wait()}."
            )
        return json.loads(answer)


def training_cases(names: list[str], drive: Drive, keep_memory: bool) -> Iterator[Case]:
    """One case, while the composition's process lives."""
    batch = make_batch(drive)
    steps = {
        name: TrainingStep(batch, autocast=name == "pointlib-bf16")
        for name in names
        if name in ("pointlib", "pointlib-bf16")
    }
    if "pointlib" not in steps:
        return
    x = SparseTensor(batch["feats"], batch["coords"])
    gflop = 3 * 2e-9 * count_macs(steps["pointlib"].model, x)
    calls: dict[str, Any] = dict(steps)
    answers: dict[str, Any] = {n: lambda s=s: [torch.tensor(s.losses())] for n, s in steps.items()}
    with CompositionProcess(batch, keep_memory) as composition:
        calls["composition"] = lambda: composition.ask("step")
        answers["composition"] = lambda: [torch.tensor(composition.ask("losses"))]
        name = f"SPVCNN {WIDTH:g}x training step, batch 2"
        facts = {"voxels": len(batch["coords"])}
        rtols = {"pointlib-bf16": 2e-2}
        yield Case(name, calls, answers, gflop, 1e-3, rtols, facts=facts)


def main() -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if sys.argv[2] == "keep":
        keep_freed_memory()
    step = TrainingStep(torch.load(sys.argv[1], weights_only=True))
    for line in sys.stdin:
        print(json.dumps({"step": step, "losses": step.losses}[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
