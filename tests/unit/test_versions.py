"""Versions are SemVer, ranges are npm's."""

from __future__ import annotations

import pytest

from flowmonkeyd.documents.versions import is_range, is_version, newest, sort_key

PUBLISHED = ["9.0.0", "0.0.1", "1.0.0", "10.0.0", "1.0.0-beta.2", "1.2.3+build", "0.9.0"]


def test_versions_order_by_number_and_not_by_text():
    assert sort_key("10.0.0") > sort_key("9.0.0") > sort_key("9.0.0-rc.10") > sort_key("9.0.0-rc.9")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, "10.0.0"),
        ("*", "10.0.0"),
        ("^1", "1.2.3+build"),
        ("~1.0", "1.0.0"),
        ("1.x", "1.2.3+build"),
        ("1", "1.2.3+build"),
        (">=1 <2", "1.2.3+build"),
        (">=1.0.0 <1.1.0 || 9.x", "9.0.0"),
        ("^0.0.1", "0.0.1"),
        ("^0.9", "0.9.0"),
        ("1.0.0", "1.0.0"),
        ("=1.0.0", "1.0.0"),
        ("1.2.3", "1.2.3+build"),
        ("1.2.3+build", "1.2.3+build"),
        ("1.2.3+other", None),
        ("1.0.0-beta.2", "1.0.0-beta.2"),
        ("1.0.0-beta.1", None),
        ("=1.0.0-beta.1", None),
        ("~1.0.0-beta.1", "1.0.0"),
        ("^2", None),
        ("2.0.0", None),
    ],
)
def test_the_newest_version_in_a_range_is_taken(wanted, found):
    assert newest(PUBLISHED, wanted) == found


def test_a_prerelease_is_taken_only_when_there_is_no_release():
    assert newest(["1.0.0", "2.0.0-rc.1"], None) == "1.0.0"
    assert newest(["2.0.0-rc.1", "2.0.0-rc.2"], None) == "2.0.0-rc.2"
    assert newest([], None) is None
    assert newest(["2.0.0-rc.1"], "^1") is None


@pytest.mark.parametrize("text", ["1.0.0", "0.0.0", "1.0.0-a.1", "1.0.0+b", "1.0.0-a+b"])
def test_a_version_has_three_numbers(text):
    assert is_version(text)
    assert is_range(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "^1.0.0", "1.0.0\n", " 1.0.0",
        "\uff11.0.0", "1.0.0-" + "a" * 200, "9" * 5000 + ".0.0",
    ],
)  # fmt: skip
def test_what_is_no_version(text):
    assert not is_version(text)


@pytest.mark.parametrize(
    "text", ["", " ", "latest", "^", "1.0.0.0", "^\uff11", "1.x\n", "^1" + " ^1" * 100]
)
def test_what_is_no_range(text):
    assert not is_range(text)
