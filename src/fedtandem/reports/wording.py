"""How figures are spelled: one way for the terminal, the page and the model card."""

from datetime import datetime

SHARES = frozenset({
    "exact_match", "accuracy", "rouge_l", "served", "wrong", "calls", "calls_for_50_pgr", "calls_for_80_pgr",
    "lead_over_chance",
})  # fmt: skip
"""Metrics between 0 and 1, shown in per cent; their differences are points."""

_METRICS = {
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "rouge_l": "Rouge-L",
    "bits_per_byte": "bits per byte",
    "apgr": "APGR",
    "calls_for_50_pgr": "calls for 50 % of the gap",
    "calls_for_80_pgr": "calls for 80 % of the gap",
}
MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"


def metric_name(metric: str) -> str:
    """The metric in words."""
    return _METRICS.get(metric, metric.replace("_", " "))


def figure(value: float | None, metric: str) -> str:
    """A measurement with its unit."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}{THIN}%" if metric in SHARES else _signed(f"{value:.3f}")


def difference(value: float | None, metric: str) -> str:
    """A difference of two measurements, with its sign; none where it is 0 at this precision."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}" if metric in SHARES else f"{value:+.3f}"
    return _signed(text) if float(text) else text[1:]


def is_visible(value: float | None, metric: str) -> bool:
    """Whether a difference is more than 0 at the precision it is shown with."""
    return value is not None and difference(value, metric) != difference(0.0, metric)


def unit(metric: str) -> str:
    """The unit of a difference."""
    return "points" if metric in SHARES else metric_name(metric)


def interval(bounds: tuple[float, float] | list[float] | None, metric: str) -> str:
    """An interval of a difference."""
    if bounds is None:
        return "–"
    return f"{difference(bounds[0], metric)} to {difference(bounds[1], metric)}"


def payload(n: float) -> str:
    """Bytes for people (SI)."""
    size = float(n)
    for name in ("B", "kB", "MB"):
        if abs(size) < 1000:
            return f"{size:.0f}{THIN}{name}" if name == "B" or size >= 100 else f"{size:.1f}{THIN}{name}"
        size /= 1000
    return f"{size:.2f}{THIN}GB"


def moved(n: int) -> str:
    """Bytes, where there were any."""
    return payload(n) if n else ""


def seconds(value: float) -> str:
    """CPU time for people."""
    if value < 10:
        return f"{value:.1f}{THIN}s"
    if value < 600:
        return f"{value:.0f}{THIN}s"
    minutes = round(value / 60)
    return f"{minutes}{THIN}min" if minutes < 120 else f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"


def clock(at: datetime | None) -> str:
    """Time of day, here."""
    return "" if at is None else at.astimezone().strftime("%H:%M:%S")


def plural(count: int, noun: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def p_value(p: float | None) -> str:
    """A p-value, not more exact than it is."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def method_name(method: str) -> str:
    """A method or row as it is read aloud."""
    return _METHODS.get(method, method)


_METHODS = {
    "zero_shot": "zero-shot",
    "standalone": "Standalone",
    "standalone_public": "Standalone + public",
    "server_public": "Server on public",
    "llm2slm": "LLM2SLM",
    "fedavg": "FedAvg",
    "fedmkt": "FedMKT",
    "fedmkt_bytes": "FedMKT (bytes)",
    "fedmkt_mined": "FedMKT (mined)",
    "fedmkt_no_selection": "FedMKT without a choice of teachers",
    "fedmkt_all": "FedMKT on the whole public set",
    "fedmkt_random": "FedMKT on random items",
    "lada": "FedMKT with LaDa",
    "centralised": "Centralised",
}


def listed(names: list[str] | tuple[str, ...]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
