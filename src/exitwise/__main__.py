"""``python -m exitwise``."""

from exitwise.cli import main

if __name__ == "__main__":
    main()
