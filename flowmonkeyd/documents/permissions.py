"""What a handler asks for, in words for who decides about it, and what is in its package. Pure.

The words come from the manifest alone: they say the most that it can ever do. What a daemon's
settings leave of that is `flowmonkeyd.terms`'. A list of parts comes from whoever built the
package; it is read under limits and nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmonkeyd.documents.manifest import Manifest, Network
from flowmonkeyd.documents.text import parse_json
from flowmonkeyd.errors import Invalid, Problem

__all__ = ["in_words", "parts_of", "secrets_of"]

# Shown, not counted.
NAMES_SHOWN = 8
PARTS_MAX = 1000
_TEXT_CHARS_MAX = 200
_FILES = {
    "none": "may read its own package, and write nothing",
    "readonly": "may read its own package, and write nothing",
    "temp": "may read its own package, and write a private /tmp that vanishes with each run",
}


def secrets_of(manifest: Manifest) -> tuple[str, ...]:
    """The names of the secrets it asks for."""
    return tuple(one.property for one in manifest.inputs if one.source == "vault")


def in_words(manifest: Manifest) -> tuple[str, ...]:
    """What it may do, the most dangerous first; each a phrase like `may reach the internet`."""
    secrets, stateful = secrets_of(manifest), manifest.stateful
    read = "may read no secrets"
    if secrets:
        many = "s" if len(secrets) > 1 else ""
        read = f"may read {len(secrets)} secret{many}: {_listed(secrets)}"
    size = f"{manifest.memory_mib} MiB, {_count(manifest.cpu, 'core')}"
    if stateful is None:
        runs = f"{size}, {_time(manifest.timeout_ms)}"
    else:
        runs = (
            f"runs in a container of the size {stateful.resources!r}, keeps state, "
            f"up to {_time(stateful.ttl_hard_ms)}"
        )
    files = _FILES["temp" if stateful else manifest.filesystem]
    return (*_network(manifest.network), read, files, runs)


def parts_of(sbom: bytes) -> list[dict[str, Any]]:
    """`{name, version, licenses}` of each component of a CycloneDX document in JSON.

    Raises Invalid for what is none.
    """
    document = parse_json(sbom)
    components = document.get("components", [])
    if document.get("bomFormat") != "CycloneDX" or not isinstance(components, list):
        raise _refused("it is not CycloneDX in JSON")
    if len(components) > PARTS_MAX:
        raise _refused(f"it has more than {PARTS_MAX} components")
    return [_part(one) for one in components]


def _part(component: Any) -> dict[str, Any]:
    if not isinstance(component, Mapping) or not isinstance(component.get("name"), str):
        raise _refused("a component has no name")
    group, version = component.get("group"), component.get("version")
    name = f"{group}/{component['name']}" if isinstance(group, str) else component["name"]
    return {
        "name": name[:_TEXT_CHARS_MAX],
        "version": version[:_TEXT_CHARS_MAX] if isinstance(version, str) else None,
        "licenses": list(_licenses(component.get("licenses"))),
    }


def _licenses(given: Any) -> Iterator[str]:
    for one in given if isinstance(given, list) else []:
        if isinstance(one, Mapping):
            license_ = one.get("license")
            inner = license_ if isinstance(license_, Mapping) else {}
            text = one.get("expression") or inner.get("id") or inner.get("name")
            if isinstance(text, str):
                yield text[:_TEXT_CHARS_MAX]


def _network(network: Network | None) -> Iterator[str]:
    if network is None or network.allow == ():
        yield "may not reach the network"
        return
    if network.allow is None:
        yield "may reach the internet"
    else:
        yield f"may reach {_count(len(network.allow), 'place')}: {_listed(network.allow)}"
    if network.deny:
        yield f"may not reach {_listed(network.deny)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def _time(ms: int) -> str:
    if ms < 120_000:
        return f"{ms / 1000:g} s"
    return f"{ms / 60_000:g} min" if ms < 7_200_000 else f"{ms / 3_600_000:g} h"


def _refused(why: str) -> Invalid:
    message = f"cannot accept the package: its list of parts cannot be read: {why}"
    return Invalid(message, problems=(Problem("$.package.sbom", why),))
