"""The documentation is true: README's commands run, and the docs name all that there is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from flowctl.client import Client
from flowctl.main import cli
from flowmonkeyd.api.routes import ROUTES
from flowmonkeyd.errors import CODES
from flowmonkeyd.settings import HandlerSection, Settings
from flowmonkeyd.store.ledger import TYPES
from tests.stateful.conftest import STORE, skip_without_containers

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
ALL = "\n".join(DOCS.values())


def shell_of(text: str, heading: str) -> str:
    """The `sh` blocks of a section, one after the other."""
    _, _, section = text.partition(f"\n## {heading}\n")
    assert section, f"README.md has no section {heading!r}"
    section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


def bash(script: str, folder: Path, env: dict[str, str]) -> tuple[int, str, str]:
    """Run a script as a group of its own, so that nothing it starts outlives a failure."""
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, err = shell.communicate(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return shell.returncode, out, err


@pytest.mark.slow
def test_the_first_flow_of_the_readme_runs_and_finds_nothing(stopped_daemon, tmp_path):
    script = shell_of((ROOT / "README.md").read_text(), "Your first flow in five minutes")
    # A person types `kill $!` and looks; a script must also see that the daemon ends well.
    code, out, err = bash(script + "wait $!\n", tmp_path, stopped_daemon.env)
    assert code == 0, err
    for promised in (
        "hello.yaml: hello@1.0.0 is valid",
        '"greeting": "Hello, Ada!"',
        '"greeting": "Hello, Bob!"',
        "FileNotFoundError",
        "PermissionError",
    ):
        assert promised in out
    assert "it worked" not in out
    assert "the key bob-1 was used before" in err


@pytest.mark.slow
def test_the_readmes_work_of_hours_pauses_and_ends_with_the_bill(stopped_daemon, tmp_path):
    skip_without_containers()
    stopped_daemon.start("--set", f"containers.imageStores={STORE.resolve()}")
    script = shell_of((ROOT / "README.md").read_text(), "Work that takes hours")
    code, out, err = bash(script, tmp_path, stopped_daemon.env)
    assert code == 0, err
    assert '"counted": 30' in out
    assert '"word": "enough"' in out
    assert re.search(r"^count@1\.0\.0 +1 +0\.0000\d{5} \$", out, re.MULTILINE), out


@pytest.mark.slow
def test_the_five_minutes_of_an_author_end_with_the_bill(daemon, tmp_path):
    script = shell_of(DOCS["handlers.md"], "Five minutes")
    env = {**daemon.env, "HOME": str(tmp_path)}  # where keys are kept
    env.pop("XDG_CONFIG_HOME", None)
    code, out, err = bash(script, tmp_path, env)
    assert code == 0, err
    assert '{"greeting": "Hello, Ada!", "length": 11}' in out
    assert '"greeting": "Hello, Bob! Hello, Bob!"' in out
    assert "acme/hello@0.1.0: published, signed by acme\n" in out
    assert "  may not reach the network\n" in out
    assert '"greeting": "Hello, Ada!",\n' in out  # of the run, in its context
    assert re.search(r"^acme/hello@0\.1\.0 +1 +0\.000300000 \$$", out, re.MULTILINE), out


def commands_running() -> Iterator[str]:
    """Of every process of the machine."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield command.read_text(errors="replace")


@pytest.mark.slow
def test_the_demo_runs_and_leaves_nothing(stopped_daemon, tmp_path):
    code, out, err = bash("script/demo", ROOT, {**stopped_daemon.env, "TMPDIR": str(tmp_path)})
    assert code == 0, err
    assert "status      completed" in out
    assert "network: refused 169.254.169.254:80" in out
    assert list(tmp_path.iterdir()) == []
    if "NOT SHOWN" in err:
        pytest.skip(f"NO container in the demo: {err}")
    film = re.search(r"^sha256 +([0-9a-f]{64})$", out, re.MULTILINE)
    assert film, out
    assert f"{film[1]}  film.mp4" in out
    (id_,) = re.findall(r"\$ flowctl job show (\S+)", out)
    assert re.search(rf"^{id_} +film:transcode .* running +\d+ %  1 ", out, re.MULTILINE), out
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert [one for one in commands_running() if str(tmp_path) in one] == []


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_route_is_in_the_docs(route):
    path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path)
    assert f"| {route.method} `{path}`" in DOCS["api.md"]


def commands(group: click.Group, before: str) -> list[str]:
    context = click.Context(group)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = isinstance(command, click.Group)
        found += commands(command, f"{before} {name}") if inner else [f"{before} {name}"]
    return found


@pytest.mark.parametrize("command", commands(cli, "flowctl"))
def test_a_command_is_in_the_docs(command):
    assert f"`{command}" in DOCS["api.md"]


def settings(model: type = Settings, above: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            keys += settings(field.annotation, f"{above}{name}.")
        elif name == "handlers":
            keys += settings(HandlerSection, 'handlers."TYPE".')
        else:
            keys.append(above + name)
    return keys


@pytest.mark.parametrize("key", settings())
def test_a_setting_is_in_the_docs(key):
    assert f"| `{key}` |" in DOCS["operations.md"]


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_in_the_docs(code):
    assert f"`{code}`" in DOCS["api.md"]


@pytest.mark.parametrize("type_", TYPES)
def test_an_event_type_is_in_the_docs(type_):
    assert f"`{type_}`" in DOCS["api.md"]


@pytest.mark.slow
def test_every_metric_is_in_the_docs(daemon):
    answer = Client(str(daemon.socket), 10.0).request("GET", "/metrics")
    names = re.findall(r"^# HELP (\S+)", answer.body.decode(), re.MULTILINE)
    assert len(names) >= 5
    assert [name for name in names if f"`{name}`" not in DOCS["operations.md"]] == []


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", *(f"docs/{n}" for n in DOCS)])
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("room", ["flowmonkeyd", "flowctl", "flowmonkey", "sandbox"])
def test_the_code_map_names_every_module_and_no_other(room):
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(text.splitlines()) <= 240
    section = re.split(r"^#+ ", text.partition(f"\n### {room}/\n")[2], flags=re.MULTILINE)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    there = [
        path.relative_to(ROOT / room).with_suffix("").as_posix()
        for path in (ROOT / room).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py") and "shipped" not in path.parts
    ]
    assert sorted(named) == sorted(there)


def test_every_test_the_architecture_page_names_is_there():
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in (ROOT / "tests").rglob("*.py")
    }
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) >= 10
    for file, test in named:
        assert file in sources, file
        assert not test or f"def {test}(" in sources[file], f"{file}::{test}"
