"""Dependencies come from wheels and nothing of them is run, whatever they ask for."""

from __future__ import annotations

import pytest

from flowctl.build.wheels import Part, vendor
from flowctl.problems import Rejected
from tests.build.conftest import sdist, wheel


def test_a_wheel_and_what_it_requires_are_vendored_without_what_is_local(index):
    wheel(
        index, "alpha", "1.0", {"alpha-1.0.data/scripts/alpha": "#!python\n"}, requires=["beta>=2"]
    )
    wheel(index, "beta", "2.1")
    got = vendor({"alpha": "==1.0"}, None)
    assert sorted(got.files) == [
        "alpha-1.0.dist-info/METADATA",
        "alpha-1.0.dist-info/WHEEL",
        "alpha/__init__.py",
        "beta-2.1.dist-info/METADATA",
        "beta-2.1.dist-info/WHEEL",
        "beta/__init__.py",
    ]
    assert got.parts == (Part("pypi", "alpha", "1.0", "MIT"), Part("pypi", "beta", "2.1", "MIT"))
    assert got.warnings == ()


def test_the_lock_decides_the_version(index):
    for version in ("1.0", "1.1", "1.2"):
        wheel(index, "alpha", version)
    assert vendor({"alpha": ">=1"}, None).parts[0].version == "1.2"
    got = vendor({"alpha": ">=1"}, b"alpha==1.1\n")
    assert got.parts[0].version == "1.1"
    assert got.files["alpha/__init__.py"] == b"VERSION = '1.1'\n"


def test_what_may_differ_on_another_day_is_told(index):
    wheel(index, "alpha", "1.0")
    for specifier in (">=1", "*", "==1.*"):
        assert "another version on another day" in vendor({"alpha": specifier}, None).warnings[0]


def test_a_dependency_that_does_not_exist_is_refused(index):
    with pytest.raises(Rejected) as caught:
        vendor({"nosuch": "==1.0"}, None)
    assert caught.value.message == (
        "cannot get the dependency nosuch==1.0: the package index has no such version; "
        "check its name and version"
    )


@pytest.fixture
def trap(tmp_path):
    """A setup.py that would leave a mark, and the mark."""
    mark = tmp_path / "was-run"
    return f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n", mark


def test_a_dependency_with_only_sources_is_refused_and_not_run(index, trap):
    sdist(index, "gamma", "1.0", trap[0])
    with pytest.raises(Rejected) as caught:
        vendor({"gamma": "==1.0"}, None)
    assert "there is no wheel of that version" in caught.value.message
    assert "sources are never built" in caught.value.message
    assert not trap[1].exists()


def test_a_wheel_for_another_machine_is_no_wheel(index):
    wheel(index, "delta", "1.0", tag="cp39-cp39-win_amd64")
    with pytest.raises(Rejected, match=r"cannot get the dependency delta==1\.0"):
        vendor({"delta": "==1.0"}, None)


@pytest.mark.parametrize(
    "project",
    [None, '[build-system]\nrequires = []\nbuild-backend = "setup"\nbackend-path = ["."]\n'],
    ids=["setup.py", "a build backend of its own"],
)
def test_a_wheel_cannot_have_sources_built_by_naming_their_address(index, trap, project):
    """--only-binary says nothing about a dependency that is an address."""
    source = sdist(index, "epsilon", "1.0", trap[0], project)
    wheel(index, "zeta", "1.0", requires=[f"epsilon @ file://{source}"])
    with pytest.raises(Rejected, match="only wheels are used"):
        vendor({"zeta": "==1.0"}, None)
    assert not trap[1].exists()


def test_a_wheel_cannot_have_a_version_control_tool_started(index):
    wheel(index, "eta", "1.0", requires=["theta @ git+file:///nowhere/theta"])
    with pytest.raises(Rejected):
        vendor({"eta": "==1.0"}, None)


@pytest.mark.parametrize(
    ("name", "specifier"),
    [
        ("alpha", "@ https://example.com/alpha.tar.gz"),
        ("alpha", "not a version"),
        ("alpha", "==1.0; python_version > '3'"),
        ("alpha", "==1.0 --no-binary :all:"),
        ("--no-binary", "==1"),
        ("alpha[extra", "==1"),
        ("../alpha", "==1"),
        ("alpha @ file:///tmp/x", ""),
    ],
)
def test_what_is_no_name_or_version_is_refused_before_pip_sees_it(index, name, specifier):
    with pytest.raises(Rejected) as caught:
        vendor({name: specifier}, None)
    assert caught.value.lines[0].startswith(f"$.dependencies.{name}: ")


def test_no_dependencies_need_no_pip():
    assert vendor({}, None).files == {}
