"""Every command and example of docs/, and README's example, is run on a synthetic dataset of a few scans."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK = {
    "synthetic-nuscenes": "--scenes scene-0061 scene-0103 --samples-per-scene 2 --image-size 64 36 --sweeps 2 --beams 8"
    " --azimuth-steps 180 --workers 1",
    "nuscenes": "--workers 1",
    "synthetic": "--sequences 00:2 08:1 --azimuth-steps 90 --beams 16 --workers 1",
    "configs/synthetic/minkunet_lidarseg_demo.yaml": "--trainer.max_epochs 1 --trainer.limit_train_batches 1"
    " --trainer.accelerator cpu --trainer.progress_bar false --data.num_workers 0",
    "configs/synthetic/bevfusion_det_cl_demo.yaml": "--trainer.max_epochs 1 --trainer.limit_train_batches 1"
    " --trainer.limit_val_batches 1 --trainer.accelerator cpu --trainer.progress_bar false --data.num_workers 0",
    "train.py": "--trainer.max_epochs 1 --trainer.limit_train_batches 1 --trainer.limit_val_batches 1"
    " --trainer.precision 32-true --trainer.accelerator cpu --data.num_workers 0 --data.batch_size 1"
    " --trainer.progress_bar false --data.train_split '[\"00\"]'",
    "evaluate.py": "--num_workers 0",
    "check": "--workers 1",
}
"""What makes a page's command take seconds: options given again, the last of which counts."""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository from inside, with a small dataset in DIR and a scan."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    run_command("python tools/prepare_data.py synthetic --root DIR", monkeypatch)
    scan = next(tmp_path.glob("DIR/sequences/00/velodyne/*.bin"))
    (tmp_path / "SCAN.bin").write_bytes(scan.read_bytes())
    return tmp_path


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python tools/x.py ...` or `python -m x ...` in this process; raise unless it succeeds."""
    python, script, *arguments = shlex.split(line)
    assert python == "python", f"only python commands can be checked: {line}"
    quick = next(
        (more for key, more in QUICK.items() if key in (script, Path(script).name, *arguments)), ""
    )
    monkeypatch.setattr(sys, "argv", [script, *arguments, *shlex.split(quick)])
    try:
        if script == "-m":
            sys.argv.pop(0)
            runpy.run_module(arguments[0], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, f"{line}: exit code {stop.code}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks
    for language, text in blocks:
        if language == "python":
            exec(compile(text, f"{page.name} (python block)", "exec"), {"__name__": "__main__"})
            continue
        for line in text.strip().splitlines():
            run_command(line, monkeypatch)


OPTION = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
FOREIGN = {"logdir", "no-deps", "nproc_per_node"}
"""Options of tensorboard, pip and torchrun."""


def test_every_option_on_a_page_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = (
        "check",
        "synthetic",
        "range-scans",
        "nuscenes",
        "synthetic-nuscenes",
        "paste-database",
    )
    calls = [["tools/prepare_data.py", command] for command in commands]
    programs = ("train", "evaluate", "predict", "visualize", "tune")
    calls += [[f"tools/{name}.py"] for name in programs]
    of_scenes = ["tools/train.py", "--task", "multi_sensor"]
    calls += [of_scenes, [*of_scenes, "--data.paste.help"], ["pointlib/ops/precompile.py"]]
    for script, *subcommand in calls:
        monkeypatch.setattr(sys, "argv", [script, *subcommand, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    known = set(OPTION.findall(capsys.readouterr().out)) | FOREIGN
    pages = [*PAGES, ROOT / "benchmarks" / "real_scans.md"]
    for page in pages:
        used = set(OPTION.findall(page.read_text(encoding="utf-8"))) - {"trainer.max_epoch"}
        assert used - known == set(), page.name


def test_a_wrong_command_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="exit code"):
        run_command("python tools/prepare_data.py check --root MISSING", monkeypatch)
