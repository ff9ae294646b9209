"""What does a caller read, to the byte? The error texts of the device API."""

DENIED = '{"error":"This action is not allowed! Devices are unassigned or assigned to different customers!"}'
UNKNOWN_DEVICE = '{"error":"Target device not found!"}'
OFFLINE = '{"error":"No active connection to the remote device!"}'
TIMED_OUT = '{"error":"Timeout while waiting response from device!"}'
LOST = '{"error":"Connection to the remote device was lost!"}'
BUSY = '{"error":"Too many requests!"}'
NOT_POSITIVE = '{"error":"Timeout can\'t be negative!"}'
TOO_LARGE = '{"error":"Timeout is too large!"}'
UNASSIGNED = '{"error":"Device is unassigned!"}'
UNAVAILABLE = '{"error":"Internal server error!"}'


def malformed(part: str) -> str:
    return f'{{"error":"Malformed request: {part}"}}'


def unsupported(method: str) -> str:
    return f'{{"error":"Method {method} is not supported!"}}'
