"""One file per architecture. Copy the shortest one (point_mlp.py) to begin your own."""
