"""The lab's progress: the host's progress bar, and a line of text on the node."""

from __future__ import annotations

import time

import comfy.utils

from . import page

TEXT_EVERY = 0.3  # seconds between two such lines


class Progress:
    """Shows how many of all model calls are done, and the time left."""

    def __init__(self, node_id: str | None, total: int, open_end: bool) -> None:
        self._node_id = node_id
        self._total = total
        self._sign = "at least " if open_end else ""
        self._bar = comfy.utils.ProgressBar(max(total, 1))
        self._done = 0
        self._began = time.monotonic()
        self._told = self._began  # the first line stays for a moment, to be read

    def say(self, text: str) -> None:
        send = getattr(page.server(), "send_progress_text", None)
        if send is not None and self._node_id is not None:
            send(text, self._node_id)

    def call(self, name: str, calls: int) -> None:
        """To be called before each model call."""
        self._update(self._done + calls - 1)
        now = time.monotonic()
        if now - self._told < TEXT_EVERY:
            return
        self._told = now
        done = self._done + calls - 1
        left = (now - self._began) / max(done, 1) * max(self._total - done, 0)
        self.say(f"{done} of {self._sign}{self._total} model calls, {_clock(left)} left: {name}")

    def finish(self, calls: int, expected: int) -> None:
        """To be called after each run, even if it took another number of calls than expected."""
        self._done += calls
        self._total += calls - expected
        self._update(self._done)

    def end(self) -> None:
        """To be called at the end, even if there were fewer calls than expected."""
        self._total = self._done
        self._update(self._done)
        self.say(f"{self._done} model calls in {_clock(time.monotonic() - self._began)}")

    def _update(self, done: int) -> None:
        total = max(self._total, done, 1)
        self._bar.update_absolute(done, total)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
