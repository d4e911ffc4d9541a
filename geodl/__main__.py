"""``python -m geodl`` is the command ``geodl``."""

from geodl.run import main

if __name__ == "__main__":
    main()
