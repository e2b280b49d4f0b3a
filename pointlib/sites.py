"""Active voxels, and the kernel maps among all those that descend from one input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pointlib.ops.coords import check_coords
from pointlib.ops.kernel_map import (
    ConvSpec,
    KernelMap,
    Triple,
    build_generative_map,
    build_kernel_map,
    to_triple,
)
from pointlib.ops.level_maps import build_level_maps


class Sites:
    """An immutable set of active voxels. Tensors on the same voxels hold the same Sites object.

    Attributes:
        coords: (N, 4) int32 `[batch, x, y, z]`, distinct; x, y, z in voxels of this resolution.
        stride: (x, y, z), size of a voxel here in input voxels.
        spatial_shape: Extent (x, y, z) in voxels of this resolution, or None where it is unbounded.
        batch_size: Number of batch entries, empty ones counted.
        number: Which of the Sites in one SiteMaps these are; 0 for the input.
    """

    def __init__(
        self,
        coords: Tensor,
        stride: int | Sequence[int] = 1,
        spatial_shape: int | Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_coords(coords, "SparseTensor")
        self.coords = coords.contiguous()
        self.stride = to_triple(stride, "SparseTensor", "stride", 1)
        self.spatial_shape = (
            None
            if spatial_shape is None
            else to_triple(spatial_shape, "SparseTensor", "spatial_shape", 0)
        )
        if batch_size is None:
            batch_size = int(coords[:, 0].max()) + 1 if len(coords) else 0
        self.batch_size = batch_size
        self.number = 0

    def __len__(self) -> int:
        return len(self.coords)

    def to(self, device: torch.device | str) -> Sites:
        """These voxels on `device`; itself where they are there already."""
        if self.coords.device == torch.device(device):
            return self
        return Sites(self.coords.to(device), self.stride, self.spatial_shape, self.batch_size)


class SiteMaps:
    """The kernel maps among the voxels that descend from one input, each built once.

    A map is found by the Sites it starts from and its whole ConvSpec, which is everything that determines it. The
    tensors of one forward pass share one SiteMaps; it is freed with the last of them. Sites are told apart by their
    number and not by their identity, so that torch.compile finds the maps of one scan where it found another's.

    Args:
        root: Voxels of the input.
    """

    def __init__(self, root: Sites) -> None:
        self._members = [root]
        self._outgoing: dict[int, dict[str, tuple[Sites, KernelMap]]] = {}
        self._incoming: dict[int, dict[str, tuple[Sites, KernelMap]]] = {}
        self._generative: dict[int, dict[str, tuple[Sites, KernelMap]]] = {}
        self._floors: dict[int, dict[Triple, Sites]] = {}
        self._point_caches: dict[int, dict[Any, Any]] = {}

    def conv(self, sites: Sites, spec: ConvSpec) -> tuple[Sites, KernelMap]:
        """Output voxels and kernel map of a convolution from `sites`, built at the first call."""
        number = self._number_of(sites)
        found = self._outgoing.setdefault(number, {}).get(spec.key)
        if found is None:
            floors = self._floors.setdefault(number, {})
            known = floors.get(spec.stride) if spec.relation == "minkowski" else None
            coords, kernel_map = build_kernel_map(
                sites.coords, spec, sites.spatial_shape, None if known is None else known.coords
            )
            if spec.relation == "submanifold":
                known = sites
            elif known is None:
                known = self._descend(sites, spec, coords)
            if spec.relation == "minkowski":
                floors[spec.stride] = known
            self._keep(sites, spec, known, kernel_map)
            found = (known, kernel_map)
        return found

    def prepare(self, sites: Sites, same: ConvSpec, down: ConvSpec, levels: int) -> None:
        """Build the maps of a U-Net that starts at `sites` at once: on a GPU that waits once, not once a map.

        Does nothing where a map from `sites` was built before, or torch.compile traces.

        Args:
            sites: Voxels of the first level.
            same: Convolution on each level; see `build_level_maps`.
            down: Convolution from each level to the next.
            levels: Number of levels.
        """
        number = self._number_of(sites)
        if number in self._outgoing or torch.compiler.is_compiling():
            return
        for level in build_level_maps(sites.coords, same, down, levels):
            if level.down is not None:
                finer, sites = sites, self._descend(sites, down, level.coords)
                self._floors.setdefault(finer.number, {})[down.stride] = sites
                self._keep(finer, down, sites, level.down)
            self._keep(sites, same, sites, level.same)

    def inverse(self, sites: Sites, spec: ConvSpec) -> tuple[Sites, KernelMap]:
        """The finer voxels that `spec` led from to `sites`, and its map from right to left.

        Raises:
            ValueError: If no convolution of that spec led here.
        """
        arrivals = self._incoming.get(self._number_of(sites), {})
        found = arrivals.get(spec.key)
        if found is None:
            known = ", ".join(arrivals) or "none"
            raise ValueError(
                f"transposed convolution: x must come from a convolution of {spec}, whose voxels it restores; "
                f"those that led to x: {known}. Use one of them, or generative=True to make new voxels."
            )
        return found

    def generative(self, sites: Sites, spec: ConvSpec) -> tuple[Sites, KernelMap]:
        """Every finer voxel that a transposed convolution of `spec` reaches from `sites`, and its map.

        Raises:
            ValueError: If the stride of spec does not divide that of sites.
        """
        number = self._number_of(sites)
        found = self._generative.setdefault(number, {}).get(spec.key)
        if found is None:
            if any(mine % step for mine, step in zip(sites.stride, spec.stride, strict=True)):
                raise ValueError(
                    f"transposed convolution: stride must divide the tensor's stride {sites.stride}, "
                    f"got {spec.stride}. Say what a voxel is worth: SparseTensor(..., stride=...)."
                )
            x, y, z = (mine // step for mine, step in zip(sites.stride, spec.stride, strict=True))
            coords, kernel_map = build_generative_map(sites.coords, spec)
            fine = self._add(coords, (x, y, z), None, sites.batch_size)
            found = self._generative[number][spec.key] = (fine, kernel_map)
        return found

    @property
    def members(self) -> tuple[Sites, ...]:
        """All Sites so far, the input's first."""
        return tuple(self._members)

    def built_from(self, sites: Sites) -> dict[str, KernelMap]:
        """The maps from `sites` so far, by the key of their spec; not the generative ones."""
        outgoing = self._outgoing.get(self._number_of(sites), {})
        return {key: kernel_map for key, (_, kernel_map) in outgoing.items()}

    def point_cache(self, sites: Sites) -> dict[Any, Any]:
        """What is kept for the voxels of `sites` seen as points; see PointTensor."""
        return self._point_caches.setdefault(self._number_of(sites), {})

    def _number_of(self, sites: Sites) -> int:
        if sites.number >= len(self._members) or self._members[sites.number] is not sites:
            raise ValueError(
                "SiteMaps: sites must descend from the input of these maps, got those of another input. "
                "Make a SparseTensor of the features and coords instead."
            )
        return sites.number

    def _keep(self, source: Sites, spec: ConvSpec, target: Sites, kernel_map: KernelMap) -> None:
        """Remember a map, and its transpose for those who come back."""
        self._outgoing.setdefault(source.number, {})[spec.key] = (target, kernel_map)
        arrivals = self._incoming.setdefault(target.number, {})
        arrivals[spec.key] = (source, kernel_map.transpose())

    def _add(
        self, coords: Tensor, stride: Triple, spatial_shape: Triple | None, batch_size: int
    ) -> Sites:
        """New Sites among these."""
        sites = Sites(coords, stride, spatial_shape, batch_size)
        sites.number = len(self._members)
        self._members.append(sites)
        return sites

    def _descend(self, sites: Sites, spec: ConvSpec, coords: Tensor) -> Sites:
        """Sites of the output of `spec`."""
        x, y, z = (mine * step for mine, step in zip(sites.stride, spec.stride, strict=True))
        shape = None if sites.spatial_shape is None else spec.output_shape(sites.spatial_shape)
        return self._add(coords, (x, y, z), shape, sites.batch_size)


class FixedMaps(SiteMaps):
    """Maps that were all built beforehand; asked for another one, it says so.

    Args:
        members: The Sites, the input's first; they are numbered here.
        maps: (number of the input Sites, spec, number of the output Sites, KernelMap).
    """

    def __init__(
        self, members: Sequence[Sites], maps: Sequence[tuple[int, ConvSpec, int, KernelMap]]
    ) -> None:
        super().__init__(members[0])
        self._members = list(members)
        for number, sites in enumerate(members):
            sites.number = number
        for source, spec, target, kernel_map in maps:
            self._keep(members[source], spec, members[target], kernel_map)

    def conv(self, sites: Sites, spec: ConvSpec) -> tuple[Sites, KernelMap]:
        """As in SiteMaps, for a map that is there.

        Raises:
            ValueError: If it is not.
        """
        if spec.key not in self._outgoing.get(self._number_of(sites), {}):
            raise ValueError(f"FixedMaps: spec must be one that was planned for, got {spec}.")
        return super().conv(sites, spec)

    def generative(self, sites: Sites, spec: ConvSpec) -> tuple[Sites, KernelMap]:
        """There are none.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"FixedMaps: a generative convolution makes as many voxels as it finds, got {spec}."
        )
