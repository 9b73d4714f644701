"""The HTTP shell of device, edge and cloud; no arithmetic."""
