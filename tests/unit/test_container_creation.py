"""The system call filter of containers, derived; what Podman's storage has lost, found in files."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
from pathlib import Path

import pytest

from flowmonkeyd.podman.creation import seccomp_profile
from flowmonkeyd.podman.layers import remove_lost
from flowmonkeyd.podman.libpod import Places

_DEFAULT = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {
            "names": ["read", "clone", "clone3", "socket", "unshare", "mount", "keyctl"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {},
            "excludes": {},
        },
        {
            "names": ["bpf", "fanotify_init", "quotactl"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {"caps": ["CAP_SYS_ADMIN"]},
            "excludes": {},
        },
        {
            "names": ["something_new"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {"caps": ["CAP_SYS_ADMIN"]},
            "excludes": {},
        },
        {
            "names": ["arch_prctl"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {"arches": ["amd64"]},
            "excludes": {},
        },
    ],
}


def derived() -> dict[str, list[dict[str, object]]]:
    """By call, the rules for it."""
    rules: dict[str, list[dict[str, object]]] = {}
    for rule in json.loads(seccomp_profile(json.dumps(_DEFAULT)))["syscalls"]:
        for name in rule["names"]:
            rules.setdefault(name, []).append(rule)
    return rules


def test_what_no_handler_needs_is_taken_from_the_default_profile():
    rules = derived()
    assert [one["action"] for one in rules["read"]] == ["SCMP_ACT_ALLOW"]
    assert [one["action"] for one in rules["arch_prctl"]] == ["SCMP_ACT_ALLOW"]
    for name in ("unshare", "mount", "keyctl", "bpf", "io_uring_setup", "ptrace"):
        assert [(one["action"], one["errnoRet"]) for one in rules[name]] == [("SCMP_ACT_ERRNO", 1)]
    # Allowed for a capability only, and not known to us: not allowed.
    assert "something_new" not in rules


def test_calls_that_depend_on_their_arguments_have_only_such_rules():
    rules = derived()
    for name in ("clone", "socket", "personality"):
        assert all(one["args"] for one in rules[name])
    assert [one["errnoRet"] for one in rules["clone3"]] == [38]


def test_no_other_architecture_is_let_in():
    profile = json.loads(seccomp_profile(json.dumps(_DEFAULT)))
    assert [one["subArchitectures"] for one in profile["archMap"]] == [[]]
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_a_profile_that_allows_what_it_does_not_name_is_refused():
    with pytest.raises(ValueError, match="does not name"):
        seccomp_profile(json.dumps({**_DEFAULT, "defaultAction": "SCMP_ACT_ALLOW"}))


_OLD, _PREFIX = "2020-01-01T00:00:00.123456789Z", "fm-aaaabbbb-"
_IMAGE, _MINE, _UNNAMED, _RUNNING, _BUILD, _WRITTEN = (digit * 64 for digit in "123456")


@pytest.fixture
def places(tmp_path) -> Places:
    """A storage as a killed service leaves it: layers of an image, a container, a build, two lost
    ones and one that is being written."""
    layers = [
        {"id": _IMAGE, "created": _OLD, "diff-digest": "sha256:1"},
        {"id": _MINE, "created": _OLD, "names": [f"{_PREFIX}{'a' * 32}-layer"], "parent": _IMAGE},
        {"id": _UNNAMED, "created": _OLD, "parent": _IMAGE},
        {"id": _RUNNING, "created": _OLD, "names": [f"{_PREFIX}{'b' * 32}-layer"]},
        {"id": _BUILD, "created": _OLD, "names": ["base-working-container-layer"]},
        {"id": _WRITTEN, "created": _OLD, "flags": {"incomplete": True}},
    ]
    places = Places(tmp_path / "root", tmp_path / "run")
    for name, content in (
        ("overlay-layers/layers.json", layers),
        ("overlay-containers/containers.json", [{"id": "c", "layer": _RUNNING}]),
    ):
        file = places.storage / name
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    (places.storage / "overlay-layers/layers.lock").write_bytes(b"0" * 64)
    (places.storage / "overlay/l").mkdir(parents=True)
    for number, layer in enumerate(layers):
        folder = places.storage / "overlay" / str(layer["id"])
        (folder / "diff").mkdir(parents=True)
        link = f"{number}".rjust(26, "A")
        (folder / "link").write_text(link)
        (places.storage / "overlay/l" / link).symlink_to(f"../{layer['id']}/diff")
    return places


def left(places: Places) -> set[str]:
    """The layers that are there, in the list and as folders alike."""
    text = (places.storage / "overlay-layers/layers.json").read_text()
    listed = {one["id"] for one in json.loads(text)}
    folders = {one.name for one in (places.storage / "overlay").iterdir()} - {"l"}
    assert listed == folders
    assert len(list((places.storage / "overlay/l").iterdir())) == len(folders)
    return listed


def test_layers_that_no_container_has_are_removed_and_no_others(places):
    removed = remove_lost(places, _PREFIX, lambda instance: False, 60)
    assert removed == {"a" * 32, _UNNAMED}
    assert left(places) == {_IMAGE, _RUNNING, _BUILD, _WRITTEN}
    lock = (places.storage / "overlay-layers/layers.lock").read_bytes()
    assert len(lock) == 64
    assert lock != b"0" * 64, "so that Podman reads its list again"
    assert remove_lost(places, _PREFIX, lambda instance: False, 60) == set()


def test_a_layer_of_who_is_wanted_or_young_stays(places):
    assert remove_lost(places, _PREFIX, lambda instance: instance[0] in "a3", 60) == set()
    assert remove_lost(places, _PREFIX, lambda instance: False, 10**12) == set()
    assert len(left(places)) == 6


@pytest.mark.parametrize("name", ["layers", "containers"])
def test_a_list_that_cannot_be_read_condemns_nothing(places, name):
    file: Path = places.storage / f"overlay-{name}/{name}.json"
    text = file.read_text()
    file.write_text("[{")
    assert remove_lost(places, _PREFIX, lambda instance: False, 60) == set()
    file.write_text(text)
    assert len(left(places)) == 6


def _hold(lock: str, held, done) -> None:
    with open(lock, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        held.set()
        done.wait()


def test_while_podman_writes_nothing_is_removed(places):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    lock = str(places.storage / "overlay-layers/layers.lock")
    other = context.Process(target=_hold, args=(lock, held, done))
    other.start()
    held.wait()
    assert remove_lost(places, _PREFIX, lambda instance: False, 60) == set()
    done.set()
    other.join()
    assert len(remove_lost(places, _PREFIX, lambda instance: False, 60)) == 2
