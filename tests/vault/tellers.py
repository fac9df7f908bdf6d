"""Handlers that tell every secret they are given, in every way and form there is."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["WAYS", "folder"]

# How a handler tells; what its execution comes to.
WAYS = {
    "return": "completed",
    "key": "completed",
    "update": "completed",
    "emit": "completed",
    "log": "completed",
    "print": "completed",
    "cut": "completed",
    "raise": "failed",
    "fail": "failed",
    "next": "failed",
    "wait": "waiting",
    "die": "failed",
    "flood": "failed",
}
NAMES = ("token", "pem", "seed", "pin")

PYTHON = """
import base64, hashlib, json, os, sys, urllib.parse

def forms(value):
    data = value.encode()
    return [
        value, data.hex(), base64.b64encode(b"user:" + data).decode(), json.dumps({"v": value}),
        urllib.parse.quote(value, safe=""), urllib.parse.urlencode({"v": value}), repr(value),
        *value.splitlines(),
    ]

def handle(input, ctx):
    values = {name: ctx.secrets[name] for name in NAMES}
    digests = {name: hashlib.sha256(v.encode()).hexdigest() for name, v in values.items()}
    ctx.log.info("digests", **digests)
    assert "missing" not in ctx.secrets
    assert not any(v in text for v in values.values() for text in os.environ.values())
    said = [form for value in values.values() for form in forms(value)]
    text = " ".join(said)
    how = input["how"]
    if how == "return":
        return {"said": said, "text": text, "pin": int(values["pin"])}
    if how == "key":
        return {form: {form: 1} for form in said}
    if how == "update":
        ctx.update("said", said)
        for number, form in enumerate(said):
            ctx.update(f"k{number} {form[:400]}"[:420], form)
    if how == "emit":
        for form in said:
            ctx.emit("told." + form[:100], {form: form})
    if how == "log":
        for form in said:
            ctx.log.warning(form, said=form, **{"f": {form: [form]}})
    if how == "print":
        print(text)
        print(*said, sep="\\n", file=sys.stderr, flush=True)
    if how == "cut":
        for value in values.values():
            half = len(value) // 2
            sys.stdout.write("x" * (16384 - half) + value + "y\\n")
            os.write(2, value[:half].encode() + b"\\n" + value[half:].encode() + b"\\n")
    if how == "raise":
        raise ValueError(text)
    if how == "fail":
        return ctx.failure("NO " + values["token"], text, retryable=False, details={"said": said})
    if how == "next":
        return ctx.success(None, next=values["token"])
    if how == "wait":
        return ctx.wait(event="for " + values["token"], reason=values["token"], filter={"k": text})
    if how == "die":
        print(values["token"], end="", flush=True)
        os.write(2, text.encode())
        os._exit(3)
    if how == "flood":
        return said * 100_000
""".replace("NAMES", repr(NAMES))

NODE = """
const crypto = require('crypto');

const forms = (value) => [
  value, Buffer.from(value).toString('hex'), Buffer.from('user:' + value).toString('base64'),
  Buffer.from('us:' + value).toString('base64url'), JSON.stringify({ v: value }),
  encodeURIComponent(value), new URLSearchParams({ v: value }).toString(), ...value.split('\\n'),
].filter((form) => form);

exports.handle = async (input, ctx) => {
  const values = Object.fromEntries(NAMES.map((name) => [name, ctx.secrets[name]]));
  const digests = {};
  for (const [name, value] of Object.entries(values))
    digests[name] = crypto.createHash('sha256').update(value).digest('hex');
  ctx.log.info('digests', digests);
  const said = Object.values(values).flatMap(forms);
  const text = said.join(' ');
  const how = input.how;
  if (how === 'return') return { said, text, pin: Number(values.pin) };
  if (how === 'key') return Object.fromEntries(said.map((form) => [form, { [form]: 1 }]));
  for (const [number, form] of said.entries()) {
    if (how === 'update') ctx.update(`k${number} ${form}`.slice(0, 420), form);
    if (how === 'emit') ctx.emit('told.' + form.slice(0, 100), { [form]: form });
    if (how === 'log') ctx.log.warning(form, { said: form, f: { [form]: [form] } });
  }
  if (how === 'print') {
    console.log('', text, values); // the first is a format, and a value may hold a %d
    for (const form of said) console.error(form);
  }
  if (how === 'cut')
    for (const value of Object.values(values)) {
      const half = value.length >> 1;
      process.stdout.write('x'.repeat(16384 - half) + value + 'y\\n');
      process.stderr.write(value.slice(0, half) + '\\n' + value.slice(half) + '\\n');
    }
  if (how === 'raise') throw new Error(text);
  if (how === 'fail') return ctx.failure('NO ' + values.token, text, false, { said });
  if (how === 'next') return ctx.success(null, { next: values.token });
  const event = { event: 'for ' + values.token, reason: values.token, filter: { k: text } };
  if (how === 'wait') return ctx.wait(event);
  if (how === 'die') {
    process.stdout.write(values.token);
    process.abort();
  }
  if (how === 'flood') return Array(100000).fill(said);
};
""".replace("NAMES", json.dumps(NAMES))


def folder(place: Path, runtime: str) -> Path:
    """A package of the handler tell/python or tell/node."""
    inputs = [
        {"property": name, "type": "string", "source": "vault", "secret": True, "required": True}
        for name in NAMES
    ]
    inputs.append({"property": "missing", "type": "string", "source": "vault", "secret": True})
    file = "handler.py" if runtime == "python" else "handler.js"
    handler = {
        "type": f"tell/{runtime}",
        "version": "1.0.0",
        "runtime": runtime,
        "entrypoint": f"{file}:handle",
    }
    place.mkdir()
    (place / "handler.json").write_text(json.dumps({"handler": handler, "inputs": inputs}))
    (place / file).write_text(PYTHON if runtime == "python" else NODE)
    return place
