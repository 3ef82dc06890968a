"""`python -m bgectl`, and where the `bgectl` command starts."""

import sys


def start() -> None:
    """Run the program; Ctrl-C before it is there to handle it shows no traceback either."""
    try:
        from bgectl.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    start()
