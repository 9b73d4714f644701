"""matplotlib's drawings as inline SVG that takes its colours and its type from the page."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

INK, MUTED, GRID, PAPER, GOOD, BAD = (f"#0{i}0{i}0{i}" for i in range(1, 7))
SERIES = tuple(f"#{i}{i}{i}" for i in ("a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"))
"""Stand-ins: colours nobody draws with, replaced by the page's own, which differ by day and by night."""

_NAMES = {
    INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", GOOD: "--good", BAD: "--bad",
    **{colour: f"--s{i + 1}" for i, colour in enumerate(SERIES)},
}  # fmt: skip

WIDTH = 340
"""Units of a panel's width: as wide as a column on a desk and as a phone, so type keeps its size on both."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedtandem",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "text.color": INK,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def panel(height: int, width: int = WIDTH) -> Iterator[tuple[Any, Any]]:
    """A (figure, axes) of this many units, in the page's style; closed afterwards.

    Made without pyplot: no window system, no global state.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Any, key: str, description: str) -> str:
    """The drawing as one `<svg>` element.

    Args:
        figure: a matplotlib figure made in `panel`.
        key: unique on the page; begins every id.
        description: what a reader who cannot see it is told.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    # Groups need no ids; what is referred to gets the panel's key, for ids are shared by a whole page.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'id="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]+;?", "", text)
    for stand_in, name in _NAMES.items():
        text = text.replace(stand_in, f"var({name})")
    viewbox = re.search(r'viewBox="([^"]+)"', text)
    opening = (
        f'<svg viewBox="{viewbox.group(1) if viewbox else ""}" role="img" aria-label="{escape(description)}">'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    return re.sub(r">\s+<", "><", text).strip()
