"""Exit 0 if the tier in this container answers /healthz, by TLS or without."""

import os
import ssl
import sys
import urllib.error
import urllib.request

PORT = os.environ.get("FEDTANDEM_PORT", "8801")


def is_alive(scheme: str) -> bool:
    """Whether the service answers 200. With mTLS the handshake is refused for want of a certificate: it is alive."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(
            f"{scheme}://127.0.0.1:{PORT}/healthz", timeout=4, context=context
        ) as reply:
            return bool(reply.status == 200)
    except ssl.SSLError as error:
        return "CERTIFICATE_REQUIRED" in str(error).upper()
    except (OSError, urllib.error.URLError) as error:
        return "CERTIFICATE_REQUIRED" in str(error).upper()


if __name__ == "__main__":
    sys.exit(not (is_alive("http") or is_alive("https")))
