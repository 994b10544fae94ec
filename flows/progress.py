"""Progress a person can read: live bars in a terminal, one line per finished stage elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.process import StageEvent


class Progress:
    """Shows which stage works on which source; a `pipeline.process.Listener`.

    Args:
        console: where to write.
        names: a readable name per source id.
    """

    def __init__(self, console: Console, names: dict[str, str]) -> None:
        self.console = console
        self.names = names
        self.began = time.perf_counter()
        self.active: dict[tuple[str, str], float] = {}
        self.finished: set[str] = set()
        self.failed = 0
        self.lock = threading.Lock()
        self.live = Live(self, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: StageEvent) -> None:
        """Takes note of a stage that begins or ends."""
        place = (event.stage, event.source_id)
        with self.lock:
            if event.kind == "begin":
                self.active[place] = time.perf_counter()
                return
            self.active.pop(place, None)
            if event.kind == "ready":
                self.finished.add(event.source_id)
            self.failed += event.kind == "failed"
        self.console.print(self._line(event))

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        minutes, seconds = divmod(int(time.perf_counter() - self.began), 60)
        done = len(self.finished) + self.failed
        table.add_row(Text(f"{done}/{len(self.names)} sources", "bold"), f"{minutes}:{seconds:02}", "")
        with self.lock:
            for (stage, source_id), since in self.active.items():
                elapsed = f"{time.perf_counter() - since:.0f} s"
                table.add_row(Text(stage, "cyan"), elapsed, self.names.get(source_id, source_id))
        return table

    def _line(self, event: StageEvent) -> Text:
        marks = {
            "end": ("ok", "green"),
            "ready": ("ready", "bold green"),
            "failed": (event.error_class, "yellow"),
            "rests": ("rests", "yellow"),
        }
        mark, style = marks[event.kind]
        took = f"{event.seconds:7.1f} s  " if event.stage else " " * 11
        line = Text.assemble((f"{mark:>11} ", style), (f"{event.stage:<7}", "cyan"), took)
        line.append(self.names.get(event.source_id, event.source_id))
        if event.message:
            line.append(f"  {event.message}", "dim")
        return line
