"""Stop sequences in a text that grows: nothing that may become one is shown, nothing is taken back."""

from collections.abc import Sequence


class StopText:
    """A growing text that ends before the first stop sequence.

    Args:
        stops: texts, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.is_over = False

    def add(self, text: str, final: bool = False) -> str:
        """What may be shown now; with `final` also what was held back."""
        if not self._stops or self.is_over:
            return "" if self.is_over else text
        whole = self._held + text
        places = [place for place in (whole.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.is_over, self._held = True, ""
            return whole[: min(places)]
        keep = 0 if final else max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that begins `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
