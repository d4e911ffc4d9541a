"""Geometry: numpy in, numpy out, float64 inside; no torch, and no Python loop over vertices
(``edges`` has one over faces, whose order it keeps)."""

VERSION = 4  # part of every cached file's place: raise it when a function here changes its result
