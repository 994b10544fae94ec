"""`python -m flows` is the command `dvmset`."""

import sys


def main() -> None:
    """The command."""
    try:
        from flows.cli import app
    except KeyboardInterrupt:
        sys.exit(130)  # nothing has begun yet
    app(prog_name="dvmset")


if __name__ == "__main__":
    main()
