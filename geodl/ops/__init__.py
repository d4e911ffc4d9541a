"""Geometry: numpy in, numpy out, float64 inside; no torch, no Python loop over vertices."""
