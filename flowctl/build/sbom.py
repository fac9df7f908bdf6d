"""What is in a package, as a CycloneDX document; the one door to cyclonedx.

Made of facts that are the package's own: no time, no machine, no random serial number, so that the
same package has the same document.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from flowctl.build.wheels import Part
from flowmonkeyd.documents.manifest import Manifest

__all__ = ["SBOM", "sbom"]

SBOM = "sbom.cdx.json"


def sbom(manifest: Manifest, parts: Iterable[Part], sources: str) -> bytes:
    """CycloneDX 1.6 as JSON: the handler, and its parts. `sources` is a digest of what the
    handler was built from; with it the document's serial number is this package's."""
    name = f"{manifest.type}@{manifest.version}"
    handler = Component(
        name=manifest.type,
        version=manifest.version,
        type=ComponentType.APPLICATION,
        bom_ref=name,
        description=manifest.description,
        licenses=_licenses(manifest.license),
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {sources}"))
    bom.metadata.component = handler
    components = [_component(part) for part in parts]
    bom.components.update(components)
    bom.register_dependency(handler, components)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"].pop("timestamp", None)
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _component(part: Part) -> Component:
    namespace, _, name = part.name.rpartition("/")
    url = PackageURL(part.kind, namespace or None, name, part.version)
    return Component(
        name=name,
        group=namespace or None,
        version=part.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(url),
        purl=url,
        licenses=_licenses(part.license),
    )


def _licenses(text: str | None) -> list[Any]:
    return [LicenseFactory().make_from_string(text)] if text else []
