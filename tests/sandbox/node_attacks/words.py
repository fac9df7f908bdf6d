"""The words that attacks for Node are written with. It runs nothing."""

from __future__ import annotations

__all__ = ["tried", "unshimmed"]

_MODULES = """
const fs = require('fs'), os = require('os'), net = require('net'), path = require('path');
const event = (target, name) => new Promise((resolve, reject) => {
    target.on('error', (error) => resolve(error.code)); target.on(name, () => resolve(true));
});
"""

# The hooks of a module loader run in a thread of their own (nodejs.org/api/module.html,
# "Customization Hooks"), which our shim has not been in: there a body tells what it returns.
_UNSHIMMED = """
const { register } = require('module');
const { MessageChannel, receiveMessageOnPort } = require('worker_threads');
function attack() {
    const { port1, port2 } = new MessageChannel();
    register(`${__dirname}/hooks.mjs`.replace(/^/, 'file://'), {
        data: { port: port2 }, transferList: [port2] });
    const said = receiveMessageOnPort(port1);
    if (!said) throw new Error('no word from the thread');
    if (said.message.error) throw new Error(said.message.error);
    return said.message.value;
}
"""
_HOOKS = """
import { createRequire } from 'node:module';
const require = createRequire(import.meta.url);
const __dirname = import.meta.dirname;
const fs = require('fs'), os = require('os');
const body = async () => {
%s
};
export async function initialize({ port }) {
    try { port.postMessage({ value: Boolean(await body()) }) }
    catch (error) { port.postMessage({ error: String(error) }) }
}
"""


def tried(body: str) -> str:
    """The body of `attack(ctx)`, which may await."""
    return f"{_MODULES}\nasync function attack(ctx) {{\n{body}\n}}\n"


def unshimmed(body: str) -> tuple[str, dict[str, str]]:
    """The same in a thread of which our shim knows nothing: the code and files of an attack."""
    return _UNSHIMMED, {"hooks.mjs": _HOOKS % body}
