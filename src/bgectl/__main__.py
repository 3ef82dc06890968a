"""`python -m bgectl`: the same as the `bgectl` command."""

from bgectl.cli import main

if __name__ == "__main__":
    main()
