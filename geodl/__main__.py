"""``python -m geodl`` is the command ``geodl``."""

from geodl.cli.main import main

if __name__ == "__main__":
    main()
