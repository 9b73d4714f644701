"""What Prometheus reads of a tier; names are the specification's."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One tier's; several tiers of one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "http_requests_total", "Requests by route and status.", "route", "status"
        )
        self.seconds = self._histogram("http_request_seconds", "Time of a request.", SECONDS, "route")
        self.bytes = self._counter("bytes_total", "Bytes of bodies, in and out, by route.", "dir", "kind")
        self._of_visits: dict[tuple[str, int], tuple[Counter, Histogram, Counter, Counter]] = {}

    def visited(self, route: str, status: int, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """Count a request; looking its counters up costs more than counting, so they are kept."""
        known = self._of_visits.get((route, status))
        if known is None:
            known = self._of_visits[route, status] = (
                self.requests.labels(route, str(status)), self.seconds.labels(route),
                self.bytes.labels("in", route), self.bytes.labels("out", route),
            )  # fmt: skip
        requests, took, came, went = known
        requests.inc()
        took.observe(seconds)
        came.inc(bytes_in)
        went.inc(bytes_out)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(name, says, labels, registry=self.registry)

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(name, says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, says, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class CloudMetrics(Metrics):
    """Of the LLM."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self._counter("route_tokens_total", "Tokens by who decided them.", "tier")
        self.drafts = self._counter("drafts_total", "Drafts judged, by outcome.", "outcome")
        self.cost = self._counter("cloud_cost_total", "Forward passes of the LLM.")
        self.gauges = {
            "sessions": self._gauge("sessions", "Answers whose text is remembered."),
            "cache_bytes": self._gauge("prefix_cache_bytes", "Keys and values kept."),
            "evicted": self._gauge("prefix_cache_evicted", "Prefixes forgotten for want of room, ever."),
            "waiting": self._gauge("verify_waiting", "Verifications that wait for a pass."),
            "batch": self._gauge("verify_per_pass", "Verifications per forward pass, mean so far."),
        }


class EdgeMetrics(Metrics):
    """Of the edge."""

    def __init__(self) -> None:
        super().__init__()
        self.lookups = self._counter("peer_lookup_total", "Look-ups for peers.", "outcome")
        self.inserted = self._counter("peer_insert_total", "Answers offered to peers, by outcome.", "outcome")
        self.audits = self._counter("peer_audits_total", "Peers' answers the LLM looked at.", "outcome")
        self.precision = self._gauge(
            "peer_precision_lower_bound", "95 % Wilson bound of peers' audited precision.", "tenant"
        )
        self.rounds = self._gauge("fl_round", "Thresholds published, ever.")
        self.refused = self._counter("fl_clients_rejected_total", "Reports refused.", "reason")
        self.tau = self._gauge("tau", "Published threshold.", "scope")
        self.price = self._gauge("lambda_effective", "Price of a call in force.")
        self.breaker = self._gauge("breaker_state", "Of the cloud: 0 closed, 1 half open, 2 open.")


class DeviceMetrics(Metrics):
    """Of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = self._counter("route_tokens_total", "Tokens by who wrote them.", "tier")
        self.drafted = self._counter("drafts_total", "Drafts sent to the LLM, by outcome.", "outcome")
        self.accepted = self._gauge("draft_accept_ratio", "Of drafts, those that stood.")
        self.rejection = self._counter("rejection_sum", "Σβ of judged drafts by tenth of u.", "u")
        self.judged = self._counter("rejection_count", "Judged drafts by tenth of u.", "u")
        self.audited = self._counter("audits_total", "Kept tokens the LLM looked at, by its view.", "outcome")
        self.audit_tv = self._gauge(
            "audit_tv", "Of audited tokens, those the LLM would have written otherwise."
        )
        self.ttft = self._histogram("ttft_seconds", "Time to the first token.", SECONDS)
        self.speed = self._histogram("tokens_per_second", "Of an answer.", (1, 3, 10, 30, 100, 300, 1000))
        self.streams = self._gauge("streams", "Answers being written.")
        self.degraded = self._counter(
            "degraded_tokens_total", "Tokens written without the LLM that was asked for."
        )
        self.cost = self._counter("cloud_cost_total", "Forward passes of the LLM that answers took.")
        self.tau = self._gauge("tau", "Threshold in force.", "scope")
        self.price = self._gauge("lambda_effective", "Price of a call in force, backpressure included.")
        self.decisions_lost = self._counter(
            "decisions_lost_total", "Answers that could not be written to the decision log."
        )
        self.breaker = self._gauge("breaker_state", "Of the upstream: 0 closed, 1 half open, 2 open.")
        self.lookups = self._counter("peer_lookup_total", "Peers asked, by outcome.", "outcome")
