"""Now and then a device tells its edge what it counted, and asks for thresholds."""

from fedtandem.errors import FedtandemError, NetworkError
from fedtandem.serving.device import Device
from fedtandem.serving.logs import log
from fedtandem.serving.thresholds import MEASURE

DEADLINE_S = 10.0


def sync(device: Device) -> None:
    """Once; without an edge, or while it is down, thresholds stay as they are."""
    if device.upstream is None:
        return
    try:
        remote = device.upstream.model()
        policy = device.policies.current()
        measure = device.config.uncertainty or (MEASURE if policy is None else policy.measure)
        tau = 0.5 if policy is None else policy.overall.tau
        report = device.ledger.report(device.config.name, (device.fingerprint, remote.fingerprint), tau)
        if report is not None and measure == MEASURE:
            body = report.to_envelope().to_bytes()
            reply = device.upstream.post(
                "/v1/fl/report",
                body,
                DEADLINE_S,
                {"Content-Type": "application/octet-stream"},
                edge_only=True,
            )
            log("reported", tier="device", status=reply.status_code, tokens=len(device.ledger))
        fresh = device.policies.refresh(device.upstream)
        log("policy", tier="device", fresh=fresh)
    except FedtandemError as fault:
        says = {"says": str(fault)} if isinstance(fault, NetworkError) else {}
        log("not synced", level=30, fault=fault, tier="device", **says)
