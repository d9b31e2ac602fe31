"""`python -m erta_framework` is `erta`."""

from erta_framework.cli import main

if __name__ == "__main__":
    main()
