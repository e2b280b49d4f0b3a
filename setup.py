"""The one computed part of the build: the device sources in cuda/ travel inside the package.

They are compiled on the user's machine when first used, so a wheel needs no compiler and serves every platform. In the
repository they stand beside the package, where people look for them; in a wheel they are pointlib/_cuda_src.
Everything else about the package is in pyproject.toml. The recipes in configs/ and the programs in tools/ are for a
clone of the repository and are not installed; a checkpoint holds the configuration it was trained with.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

DEVICE_SOURCES = ("*.cu", "*.cuh", "README.md")


class BuildWithDeviceSources(build_py):
    """Copy cuda/ into the package, except in an editable install, which finds it in the repository."""

    def _device_sources(self) -> dict[str, str]:
        """Copied file -> file in the repository."""
        if self.editable_mode:
            return {}
        root = Path("cuda")
        target = Path(self.build_lib, "pointlib", "_cuda_src")
        found = (path for pattern in DEVICE_SOURCES for path in sorted(root.rglob(pattern)))
        return {str(target / path.relative_to(root)): str(path) for path in found}

    def run(self) -> None:
        """Build the Python part, then copy."""
        super().run()
        for target, source in self._device_sources().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name everything built, so that installing records it."""
        return [*super().get_outputs(include_bytecode), *self._device_sources()]

    def get_output_mapping(self) -> dict[str, str]:
        """Tell which built file comes from which source."""
        return {**super().get_output_mapping(), **self._device_sources()}


setup(cmdclass={"build_py": BuildWithDeviceSources})
