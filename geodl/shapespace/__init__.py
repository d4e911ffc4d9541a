"""Meshes of one connectivity as points of a curved space: metric, paths, shooting."""
