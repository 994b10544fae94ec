"""`python -m flows` is the command `dvmset`."""

from flows.cli import app

app(prog_name="dvmset")
