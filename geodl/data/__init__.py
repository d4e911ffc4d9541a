"""One file per data set; ``folder.py`` takes the user's own files without any Python."""
