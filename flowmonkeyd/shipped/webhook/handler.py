"""Posts {event, executionId, timestamp, payload}, signed, and tries again within its time.

The signature is `X-FlowMonkey-Signature: t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`. The
receiver compares it in constant time and refuses old times. `Idempotency-Key` is the same for every
try of one step of one execution.
"""

import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request

_KEYS = {"url", "event", "headers", "retries", "backoffMs", "timeoutMs"}
_MARGIN_S = 2.0
_TTL_S = 60.0


def handle(input, ctx):
    config = ctx.config
    try:
        url, event, headers = _what(config)
        retries = _number(config, "retries", 3, 0, 10)
        pause_s = _number(config, "backoffMs", 500, 0, 10_000) / 1000
        timeout_s = _number(config, "timeoutMs", 10_000, 1, 60_000) / 1000
    except ValueError as exc:
        return ctx.failure("INPUT_VALIDATION_FAILED", str(exc), retryable=False)
    until = time.monotonic() + _TTL_S - _MARGIN_S
    at = int(time.time())
    payload = input if ctx.has_input else None
    said = {"event": event, "executionId": ctx.execution_id, "timestamp": at, "payload": payload}
    body = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    headers |= {
        "Content-Type": "application/json",
        "User-Agent": "flowmonkey-webhook/1",
        "Idempotency-Key": f"{ctx.execution_id}.{ctx.step_id}",
    }
    if "signingKey" in ctx.secrets:
        headers["X-FlowMonkey-Signature"] = _signature(ctx.secrets["signingKey"], at, body)
    for number in range(retries + 1):
        status, problem = _post(
            url, body, headers, min(timeout_s, max(0.1, until - time.monotonic()))
        )
        if status is not None and 200 <= status < 300:
            return {"status": status, "tries": number + 1}
        again = status is None or status >= 500 or status in (408, 425, 429)
        wait_s = pause_s * 2**number
        if not again or number == retries or time.monotonic() + wait_s > until:
            break
        ctx.log.warning("trying again", status=status, problem=problem)
        time.sleep(wait_s)
    code = "REQUEST_FAILED" if status is None else "HTTP_ERROR"
    message = problem or f"the receiver answered {status}"
    return ctx.failure(code, message, again, {"status": status, "tries": number + 1})


def _post(url, body, headers, timeout_s):
    request = urllib.request.Request(url, body, headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirects(), urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return answer.status, None
    except urllib.error.HTTPError as exc:
        return exc.code, None
    except OSError as exc:
        return None, str(getattr(exc, "reason", None) or exc)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """What is signed for one receiver is not sent to another."""

    def redirect_request(self, *_args):
        return None


def _signature(key, at, body):
    digest = hmac.new(key.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def _what(config):
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    url, event = config.get("url"), config.get("event")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError("url should begin with http:// or https://")
    if not isinstance(event, str) or not event:
        raise ValueError("event should be a name")
    headers = config.get("headers", {})
    plain = isinstance(headers, dict) and all(isinstance(v, str) for v in headers.values())
    if not plain or any(c in t for pair in headers.items() for t in pair for c in "\r\n\0"):
        raise ValueError("headers should be an object of single lines")
    return url, event, dict(headers)


def _number(given, name, default, low, high):
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} should be a whole number from {low} to {high}")
    return value
