"""Functional operators on sparse voxels and points, one family a file."""
