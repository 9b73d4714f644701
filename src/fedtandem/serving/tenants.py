"""One secret, one key per tenant."""

import hmac


def tenant_key(secret: bytes, tenant: str) -> bytes:
    """A tenant's own key: what is signed for one is nothing to another."""
    return hmac.digest(secret, tenant.encode(), "sha256")
