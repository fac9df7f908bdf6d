"""What a handler may do: its manifest within the operator's settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowmonkeyd.config import load
from flowmonkeyd.documents.manifest import parse_manifest
from flowmonkeyd.settings import Settings
from flowmonkeyd.terms import egress_of, terms_json, terms_of
from sandbox import Egress, Reuse


def settings(**flags) -> Settings:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    return load(given, {"FLOWMONKEY_CONFIG": "/dev/null"}, False, Path("/home/mia")).settings


def manifest(**execution):
    return parse_manifest(
        {"handler": {"type": "acme/a", "version": "1.0.0"}, "execution": execution}
    )


def test_a_handler_gets_what_it_asks_for_and_no_more():
    terms = terms_of(manifest(ttl=2000, memory=64, cpu=0.5), settings())
    limits = terms.limits
    assert (limits.wall_ms, limits.memory_bytes, limits.cpu_share) == (2000, 64 * 1024**2, 0.5)
    assert terms.policy.network is None
    assert terms.policy.filesystem == "none"
    assert terms.reuse is None


def test_settings_bound_every_handler():
    given = settings(sandbox__logRate="7", sandbox__tempBytesMax="100_000")
    limits = terms_of(manifest(cpu=0.0001), given).limits
    assert (limits.log_rate, limits.temp_bytes, limits.cpu_share) == (7, 100_000, 0.01)


def test_reuse_is_the_operator_s_to_give_and_for_the_handler_he_names():
    given = settings(**{'handlers."acme/a".policy': "reuse", 'handlers."acme/a".reuseUses': "3"})
    assert terms_of(manifest(), given).reuse == Reuse(3, 60_000, 600_000)
    other = settings(**{'handlers."acme/b".policy': "reuse"})
    assert terms_of(manifest(), other).reuse is None


@pytest.mark.parametrize(
    ("asked", "operator", "own", "allow"),
    [
        (True, "*", "*", None),
        (True, "*.a.org", "*", ("*.a.org",)),
        ({"allow": ["x.a.org", "b.org"]}, "*.a.org", "*", ("x.a.org",)),
        ({"allow": ["x.a.org:443"]}, "*.a.org", "x.a.org", ("x.a.org:443",)),
        ({"allow": []}, "*", "*", ()),
        (True, "", "*", ()),
        (True, "*", "10.0.0.0/8", ("10.0.0.0/8",)),
    ],
)
def test_targets_are_those_that_manifest_and_operator_both_allow(asked, operator, own, allow):
    given = settings(**{"sandbox.network.allow": operator, 'handlers."acme/a".network.allow': own})
    policy = terms_of(manifest(sandbox={"network": asked}), given).policy
    assert policy.network is not None
    assert policy.network.allow == allow


def test_what_anybody_denies_is_denied_and_private_networks_are_the_operator_s():
    given = settings(
        **{
            "sandbox.network.deny": "a.org,b.org",
            'handlers."acme/a".network.deny': "c.org",
            'handlers."acme/a".privateNetworks': "127.0.0.0/8",
            "sandbox.network.connections": "3",
            "sandbox.network.bytesMax": "2000",
            "sandbox.network.dnsQueriesMax": "4",
            "sandbox.network.connectMs": "5",
            "sandbox.network.idleMs": "6",
        }
    )
    asked = manifest(sandbox={"network": {"deny": ["b.org", "d.org"]}})
    assert terms_of(asked, given).policy.network == Egress(
        deny=("a.org", "b.org", "c.org", "d.org"),
        private=("127.0.0.0/8",),
        connections=3,
        at_once=3,
        bytes=2000,
        dns_queries=4,
        connect_ms=5,
        idle_ms=6,
    )
    assert terms_of(manifest(), given).policy.network is None  # it did not ask


def test_an_attempt_of_a_job_reaches_the_same_and_has_caps_of_its_own():
    given = settings(
        **{
            "sandbox.network.allow": "a.org,b.org",
            "sandbox.network.deny": "c.org",
            "sandbox.network.connections": "3",
            "sandbox.network.jobs.connections": "100000",
            "sandbox.network.jobs.connectionsAtOnce": "7",
            "sandbox.network.jobs.bytesMax": "5000",
            "sandbox.network.jobs.dnsQueriesMax": "9",
        }
    )
    asked = {"network": {"allow": ["b.org:443", "d.org"]}}
    stateful = parse_manifest(
        {
            "handler": {"type": "acme/a", "version": "1.0.0", "stateful": True},
            "execution": {"sandbox": asked},
        }
    )
    alike = egress_of(manifest(sandbox=asked), given)
    assert alike is not None
    assert egress_of(stateful, given) == replace(
        alike, connections=100_000, at_once=7, bytes=5000, dns_queries=9
    )


def test_terms_are_shown_with_units():
    shown = terms_json(manifest(sandbox={"network": True, "filesystem": "temp"}), settings())
    assert shown["wallMs"] == 30_000
    assert shown["tempBytes"] == 64 * 1024**2
    assert shown["network"]["ports"] == [80, 443]
    assert shown["network"]["allow"] is None
    assert shown["reuse"] is None


def test_a_stateful_handler_is_told_what_its_container_has_and_costs():
    stateful = parse_manifest(
        {
            "handler": {"type": "acme/a", "version": "1.0.0", "stateful": True},
            "execution": {
                "resources": "heavy",
                "ttl": {"soft": 60_000, "default": 90_000, "hard": 120_000},
                "checkpoint": {"intervalMs": 2000, "maxSize": 4096},
                "pause": {"maxPauseDuration": 1000},
                "sandbox": {"network": True},
            },
        }
    )
    found = terms_json(stateful, settings(jobs__maxAttempts="5"), "python311")
    assert (found["cpuShare"], found["memoryBytes"]) == (2, 4 * 1024**3)
    assert (found["wallMs"], found["cpuMs"], found["logRate"]) == (120_000, None, None)
    assert found["network"]["connections"] == 10_000
    own = found["stateful"]
    assert (own["resources"], own["image"], own["perSecond"]) == (
        "heavy",
        "python311",
        "0.000100000",
    )
    assert own["ttl"] == {"defaultMs": 90_000, "softMs": 60_000, "hardMs": 120_000}
    assert own["checkpoint"] == {"intervalMs": 2000, "maxSize": 4096, "days": 7}
    assert (own["pauseMaxMs"], own["maxAttempts"]) == (1000, 5)
    assert set(found) == set(terms_json(manifest(), settings()))
