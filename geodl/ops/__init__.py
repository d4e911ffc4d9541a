"""Geometry: numpy in, numpy out, float64 inside; no torch, no Python loop over vertices."""

VERSION = 4  # part of every cached file's place: raise it when a function here changes its result
