"""Worlds: what is needed to generate images and to judge them. One folder or file each, found by themselves.

Importing this package or asking for a world's settings loads nothing heavy; only `World.load` does.
"""

from ditbench.worlds.base import RANDOM, Handle, Part, World
from ditbench.worlds.registry import get_world, world_names

__all__ = ["RANDOM", "Handle", "Part", "World", "get_world", "world_names"]
