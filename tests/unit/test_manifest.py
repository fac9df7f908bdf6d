"""handler.json: defaults, limits, and every problem with its place."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowmonkeyd.documents.manifest import Network, Stateful, json_schema, parse_manifest
from flowmonkeyd.errors import Invalid

CONTRACT = {
    "$schema": "https://agenticflow.com/schemas/handler-manifest-v1.json",
    "handler": {
        "type": "acme/resize",
        "version": "1.2.0",
        "name": "Resize",
        "description": "Makes pictures smaller",
        "category": "media",
        "runtime": "python",
        "entrypoint": "handler.py:handle",
        "stateful": False,
        "timeout": 30000,
    },
    "inputs": [
        {
            "property": "apiKey",
            "type": "string",
            "source": "vault",
            "secret": True,
            "required": True,
        }
    ],
    "execution": {
        "ttl": 30000,
        "memory": 256,
        "cpu": 1,
        "sandbox": {"network": False, "filesystem": "none", "env": "isolated"},
    },
    "dependencies": {"pillow": "==11.*"},
}


def _document(handler=None, **sections):
    return {"handler": {"type": "a", "version": "1.0.0", **(handler or {})}, **sections}


def test_the_manifest_of_the_contract_is_read():
    manifest = parse_manifest(json.dumps(CONTRACT))
    assert (manifest.type, manifest.version, manifest.name) == ("acme/resize", "1.2.0", "Resize")
    assert (manifest.runtime, manifest.entrypoint) == ("python", "handler.py:handle")
    assert (manifest.timeout_ms, manifest.memory_mib, manifest.cpu) == (30000, 256, 1)
    assert (manifest.network, manifest.filesystem, manifest.stateful) == (None, "none", None)
    assert manifest.dependencies == {"pillow": "==11.*"}
    (one,) = manifest.inputs
    assert (one.property, one.type, one.source) == ("apiKey", "string", "vault")
    assert (one.secret, one.required) == (True, True)


def test_the_shortest_manifest_gets_the_defaults():
    manifest = parse_manifest(_document())
    assert (manifest.runtime, manifest.entrypoint) == ("python", "handler.py:handle")
    assert (manifest.timeout_ms, manifest.memory_mib, manifest.cpu) == (30_000, 512, 1)
    assert (manifest.network, manifest.filesystem, manifest.stateful) == (None, "none", None)
    assert (manifest.inputs, manifest.dependencies) == ((), {})


def test_rules_of_an_input_are_kept():
    rules = {"min": 1, "max": 5, "validation": {"pattern": "a+"}}
    one = {"property": "n", "type": "number", "default": 3, "description": "how many", **rules}
    manifest = parse_manifest(_document(inputs=[one]))
    assert manifest.inputs[0].rules == rules
    assert manifest.inputs[0].source == "input"
    assert (manifest.inputs[0].default, manifest.inputs[0].description) == (3, "how many")


@pytest.mark.parametrize(
    ("handler", "execution", "timeout_ms"),
    [
        ({}, {}, 30_000),
        ({"timeout": 60_000}, {}, 60_000),
        ({"timeout": 500}, {}, 500),
        ({}, {"ttl": 60_000}, 60_000),
        ({"timeout": 2000}, {"ttl": 1000}, 1000),
        ({"timeout": 1000}, {"ttl": 2000}, 1000),
        ({"stateful": True}, {"ttl": {"default": 120_000}}, 120_000),
        ({"stateful": True, "timeout": 5000}, {"ttl": {"default": 120_000}}, 5000),
    ],
)
def test_the_lower_of_timeout_and_ttl_holds(handler, execution, timeout_ms):
    assert parse_manifest(_document(handler, execution=execution)).timeout_ms == timeout_ms


@pytest.mark.parametrize(
    ("execution", "stateful"),
    [
        (
            {
                "ttl": {"soft": 60_000, "hard": 120_000, "default": 61_000},
                "checkpoint": {"required": True, "intervalMs": 20_000, "maxSize": 1024},
                "pause": {"enabled": False, "maxPauseDuration": 1000},
                "resources": "gpu",
            },
            Stateful(60_000, 120_000, 61_000, 20_000, 1024, False, 1000, "gpu"),
        ),
        (
            {},
            Stateful(
                3_600_000, 86_400_000, 3_600_000, 30_000, 10 * 1024**2, True, 604_800_000, "light"
            ),
        ),
    ],
)
def test_a_stateful_manifest_has_its_own_sections(execution, stateful):
    manifest = parse_manifest(_document({"stateful": True}, execution=execution))
    assert manifest.stateful == stateful
    assert manifest.timeout_ms == stateful.ttl_default_ms


def check_problems(document, *expected):
    with pytest.raises(Invalid) as caught:
        parse_manifest(document)
    found = [(problem.path, problem.message) for problem in caught.value.problems]
    assert [path for path, _ in found] == [path for path, _ in expected], found
    for (_, message), (_, words) in zip(found, expected, strict=True):
        assert words in message
    assert caught.value.code == "INVALID"


def _of_handler(field, value, words="", **rest):
    return _document({field: value, **rest}), (f"$.handler.{field}", words)


def _of_execution(path, value, words="", **handler):
    document = value
    for name in reversed(path.split(".")):
        document = {name: document}
    return _document(handler, execution=document), (f"$.execution.{path}", words)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], ("$", "should be an object, not a list")),
        ({}, ("$.handler", "is required")),
        ({"handler": 1}, ("$.handler", "should be an object, not a number")),
        (_document(handlers={}), ("$.handlers", "unknown field")),
        (_document(inputs={}), ("$.inputs", "should be a list, not an object")),
        (_document(dependencies={"x": 1}), ("$.dependencies.x", "should be text, not a number")),
        (_document(dependencies={"x": "a" * 300_000}), ("$", "more than 262144 bytes")),
        (_document(inputs=[{"property": float("nan")}]), ("$.inputs[0].property", "not a JSON")),
        _of_handler("colour", "red", "unknown field"),
        _of_handler("type", "a b", "form"),
        _of_handler("type", "a/b/c", "form"),
        _of_handler("type", "a@1", "form"),
        _of_handler("type", "wait-event", "is a built-in step type; choose another name"),
        _of_handler("type", [], "should be text, not a list"),
        _of_handler("version", "1.0", "not SemVer"),
        _of_handler("version", 1, "should be text, not a number"),
        _of_handler("version", "1.0.0\n", "not SemVer"),
        _of_handler("runtime", "ruby", "should be python or node"),
        _of_handler("runtime", [], "should be python or node", entrypoint="a.py:h"),
        _of_handler("timeout", 60_001, "at most 60000"),
        _of_handler("timeout", 0, "at least 1"),
        _of_handler("timeout", "30s", "a whole number, not text"),
        _of_handler("timeout", True, "a whole number, not true"),
        _of_handler("stateful", "yes", "true or false, not text"),
        *(
            _of_handler("entrypoint", text, "file.py:name")
            for text in ("handler.py", "handler:handle", "handler.js:handle", ":handle", "a.py:",
                         "a.py:1x", "a.py:class", "/a.py:h", "../a.py:h", "a/./b.py:h", "a//b.py:h",
                         "a.py:h\n", "a\\b.py:h", "a:b.py:h", "a.py:h.g")
        ),
        _of_handler("entrypoint", "a.py:h", "file.js:name or file.cjs:name or", runtime="node"),
        (_document({"runtime": "node"}), ("$.handler.entrypoint", "is required for node")),
        _of_execution("ttl", 60_001, "at most 60000"),
        _of_execution("ttl", 0, "at least 1"),
        _of_execution("ttl", "1m", "a whole number"),
        _of_execution("ttl", {}, "unless the handler is stateful"),
        _of_execution("ttl", 1000, "soft, hard, default", stateful=True),
        _of_execution("ttl.soft", 10**9, "must not be longer than hard", stateful=True),
        *(
            _of_execution(f"ttl.{name}", 59_999, "at least 60000", stateful=True)
            for name in ("soft", "default")
        ),
        _of_execution("ttl.default", 25 * 3600_000, "must not be longer than hard", stateful=True),
        _of_execution("ttl.hard", "x", "a whole number, not text", stateful=True),
        _of_execution("memory", 1025, "at most 1024"),
        _of_execution("memory", 1, "at least 16"),
        _of_execution("cpu", 3, "at most 2"),
        _of_execution("cpu", 1.5, "at least 513 MiB"),
        _of_execution("cpu", 0, "more than 0"),
        _of_execution("cpu", True, "a number, not true"),
        _of_execution("sandbox.network", "no", "true or false, not text"),
        _of_execution("sandbox.network.allow", "a.org", "a list, not text"),
        (_document(execution={"sandbox": {"network": {"allow": ["a.org", 1]}}}),
         ("$.execution.sandbox.network.allow[1]", "should be text, not a number")),
        (_document(execution={"sandbox": {"network": {"allow": ["a.org", "a b"]}}}),
         ("$.execution.sandbox.network.allow[1]", "names no host")),
        (_document(execution={"sandbox": {"network": {"deny": ["10.0.0.1/8"]}}}),
         ("$.execution.sandbox.network.deny[0]", "neither address nor network")),
        _of_execution("sandbox.network.only", [], "unknown field"),
        _of_execution("memory", 32, "at least 64 for node", runtime="node", entrypoint="a.js:h"),
        _of_execution("sandbox.filesystem", "all", "should be none, readonly or temp"),
        _of_execution("sandbox.env", "host", "should be isolated"),
        _of_execution("sandbox.root", "/", "unknown field"),
        _of_execution("checkpoint", {}, "is for stateful handlers"),
        _of_execution("pause", {}, "is for stateful handlers"),
        _of_execution("resources", "light", "is for stateful handlers"),
        _of_execution("resources", "huge", "light, medium, heavy or gpu", stateful=True),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_with_the_place_and_the_reason(document, problem):
    check_problems(document, problem)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (False, None),
        (True, Network()),
        ({}, Network()),
        ({"allow": []}, Network(allow=())),  # an empty list allows nothing
        (
            {"allow": ["api.stripe.com:443", "*.example.com"], "deny": ["192.0.2.0/24:80"]},
            Network(("api.stripe.com:443", "*.example.com"), ("192.0.2.0/24:80",)),
        ),
    ],
)
def test_network_is_all_nothing_or_lists_of_targets(written, read):
    execution = {"sandbox": {"network": written}}
    assert parse_manifest(_document(execution=execution)).network == read


@pytest.mark.parametrize("file", ["a.js", "lib/a.cjs", "a.mjs"])
def test_a_node_handler_may_be_any_kind_of_module(file):
    manifest = parse_manifest(_document({"runtime": "node", "entrypoint": f"{file}:handle"}))
    assert (manifest.runtime, manifest.entrypoint) == ("node", f"{file}:handle")


def test_wrong_inputs_are_refused_one_by_one():
    inputs = [
        {"type": "string"},
        {"property": "a", "type": "date", "source": "moon"},
        {"property": "b", "source": "static"},
        {"property": "b", "source": "vault", "default": "hunter2"},
        7,
    ]
    check_problems(
        _document(inputs=inputs),
        ("$.inputs[0].property", "is required"),
        ("$.inputs[1].type", "should be string"),
        ("$.inputs[1].source", "should be input, config, context, vault or static"),
        ("$.inputs[4]", "should be an object, not a number"),
        ("$.inputs[2].value", "is required for the source static"),
        ("$.inputs[3].property", "is declared twice"),
        ("$.inputs[3]", "out of the manifest"),
    )


def test_wrong_shapes_and_wrong_meanings_are_told_together():
    document = {
        "handler": {"type": "a b", "version": "one", "stateful": False, "speed": 9},
        "execution": {"pause": {}, "memory": 4096},
    }
    check_problems(
        document,
        ("$.handler.type", "form"),
        ("$.handler.speed", "unknown field"),
        ("$.execution.memory", "at most 1024"),
        ("$.handler.version", "not SemVer"),
        ("$.execution.pause", "stateful"),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("{", "not JSON: EOF while parsing an object at line 1 column 1"),
        (b"\xff", "byte 0 is not UTF-8"),
        ("[1, 2]", "expected an object and found a list"),
        ('{"handler": 1, "handler": 2}', "the key 'handler' stands twice"),
        # Its name ends in .json and programs read it as such: the catalogue, the API, editors.
        ("handler: {type: a, version: 1.0.0}", "not JSON"),
    ],
)
def test_text_that_is_no_json_object_is_refused(text, words):
    check_problems(text, ("$", words))


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_WHOLE = {
    **CONTRACT,
    "execution": {
        **CONTRACT["execution"],
        "ttl": {"soft": 60_000, "hard": 120_000, "default": 60_000},
        "checkpoint": {"intervalMs": 20_000},
        "pause": {"enabled": True},
    },
}


def _paths(value, path=()):
    yield path
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from _paths(value[key], (*path, key))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([path for path in _paths(_WHOLE) if path]), _ANY, st.booleans())
@example(("handler", "runtime"), [], False)
@example(("inputs", 0, "property"), {}, False)
def test_any_value_anywhere_is_read_or_refused_and_never_anything_else(path, value, stateful):
    document = copy.deepcopy(_WHOLE)
    document["handler"]["stateful"] = stateful
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    try:
        manifest = parse_manifest(document)
    except Invalid:
        return
    assert parse_manifest(json.dumps(document)) == manifest


def test_the_schema_names_every_field_as_it_is_written():
    schema = json_schema()
    assert set(schema["properties"]) == {
        "$schema", "handler", "inputs", "execution", "dependencies", "schemas", "package",
    }  # fmt: skip
    assert schema["additionalProperties"] is False
    json.dumps(schema)
