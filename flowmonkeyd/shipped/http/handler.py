"""One HTTP request. What it sends is in the step's config; the input adds to it and wins."""

import json
import urllib.error
import urllib.parse
import urllib.request

_KEYS = {
    *("url", "method", "headers", "query", "json", "body", "auth", "timeoutMs", "acceptStatus"),
    *("maxRedirects", "maxBytes", "parse"),
}
_BYTES_MAX = 512 * 1024


def handle(input, ctx):
    given = dict(ctx.config)
    if ctx.has_input and input is not None:
        if not isinstance(input, dict):
            return _bad(ctx, 'the input should be an object of settings, such as {"json": …}')
        given.update(input)
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        return _bad(ctx, f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    try:
        request = _request(given, ctx)
        accept = _statuses(given.get("acceptStatus", []))
        redirects = _number(given, "maxRedirects", 5, 0, 20)
        most = _number(given, "maxBytes", _BYTES_MAX, 1, _BYTES_MAX)
        timeout_s = _number(given, "timeoutMs", 30_000, 1, 60_000) / 1000
    except ValueError as exc:
        return _bad(ctx, str(exc))
    try:
        with _opener(redirects).open(request, timeout=timeout_s) as answer:
            return _answered(ctx, answer.status, answer, accept, most, given.get("parse", "auto"))
    except urllib.error.HTTPError as answer:
        return _answered(ctx, answer.code, answer, accept, most, given.get("parse", "auto"))
    except OSError as exc:  # URLError, TimeoutError, ssl.SSLError are such
        reason = getattr(exc, "reason", None) or exc
        message = f"{request.get_method()} {_shown(given['url'])}: {reason}"
        return ctx.failure("REQUEST_FAILED", message)


def _request(given, ctx):
    url = given.get("url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError("url should begin with http:// or https://")
    query = given.get("query", {})
    if not isinstance(query, dict):
        raise ValueError("query should be an object")
    if query:
        pairs = [(k, v) for k, vs in query.items() for v in (vs if isinstance(vs, list) else [vs])]
        text = urllib.parse.urlencode(
            [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in pairs]
        )
        url += ("&" if "?" in url else "?") + text
    headers = given.get("headers", {})
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise ValueError("headers should be an object of texts")
    if any(c in text for pair in headers.items() for text in pair for c in "\r\n\0"):
        raise ValueError("headers should be single lines")
    headers = {"User-Agent": "flowmonkey-http/1", **headers}
    if given.get("auth") is not None:
        if given["auth"] != "bearer":
            raise ValueError("auth should be bearer")
        if "token" not in ctx.secrets:
            raise ValueError("auth: bearer needs the secret `token`")
        headers["Authorization"] = f"Bearer {ctx.secrets['token']}"
    data = None
    if "json" in given:
        data = json.dumps(given["json"]).encode()
        headers.setdefault("Content-Type", "application/json")
    elif "body" in given:
        if not isinstance(given["body"], str):
            raise ValueError("body should be text; use json for values")
        data = given["body"].encode()
    method = given.get("method", "GET" if data is None else "POST")
    if not isinstance(method, str) or not method.isascii() or not method.isalpha():
        raise ValueError("method should be a word such as GET")
    return urllib.request.Request(url, data, headers, method=method.upper())


def _answered(ctx, status, answer, accept, most, parse):
    body = answer.read(most + 1)
    if len(body) > most:
        return ctx.failure("RESPONSE_TOO_LARGE", f"the answer has more than {most} bytes", False)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    text = body.decode(answer.headers.get_content_charset("utf-8"), "replace")
    found = text
    if parse == "json" or (
        parse == "auto" and answer.headers.get_content_subtype().endswith("json")
    ):
        try:
            found = json.loads(text) if text else None
        except ValueError:
            if parse == "json":
                return ctx.failure("INVALID_RESPONSE", "the answer is not JSON", False)
    output = {"status": status, "headers": headers, "body": found, "url": answer.url}
    if 200 <= status < 300 or status in accept:
        return output
    retryable = status >= 500 or status in (408, 425, 429)
    return ctx.failure("HTTP_ERROR", f"the server answered {status}", retryable, output)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, most):
        self.max_redirections = most

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if self.max_redirections == 0:
            return None
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _host(new.full_url) != _host(req.full_url):
            new.remove_header("Authorization")  # it was for the other host
        return new


def _host(url):
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _opener(redirects):
    return urllib.request.build_opener(_Redirects(redirects), urllib.request.ProxyHandler({}))


def _statuses(value):
    if not isinstance(value, list) or not all(isinstance(one, int) for one in value):
        raise ValueError("acceptStatus should be a list of numbers")
    return set(value)


def _number(given, name, default, low, high):
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} should be a whole number from {low} to {high}")
    return value


def _shown(url):
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"


def _bad(ctx, message):
    return ctx.failure("INPUT_VALIDATION_FAILED", message, retryable=False)
