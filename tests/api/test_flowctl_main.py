"""The program as a whole: help, names, completion, what it imports, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from flowctl_server import flowctl, script, serving

from flowctl import problems
from flowctl.main import EXIT_CODES, cli


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


def _commands(group=cli, path=()):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))


CONTRACT = """status version completion queue billing pool run
flow:apply flow:validate flow:list flow:show flow:graph
execution:list execution:show execution:history execution:logs execution:watch execution:cancel
execution:resume execution:retry
job:list job:show job:watch job:pause job:resume job:cancel job:checkpoint event:send event:tail
handler:publish handler:list handler:show handler:yank handler:deprecate handler:sign
handler:new handler:test handler:library handler:build
key:new key:list key:trust key:revoke key:namespaces key:give
image:list image:build image:prune
secret:set secret:list secret:rm secret:rotate-key
sandbox:run sandbox:explain sandbox:probe
flow execution job event handler key secret sandbox image"""


def test_commands_are_those_of_the_contract():
    assert sorted(":".join(path) for path in _commands()) == sorted(CONTRACT.split())


@pytest.mark.parametrize("path", [(), *_commands()], ids=" ".join)
def test_every_command_has_help_with_an_example(path):
    result = flowctl(*path, "--help")
    assert (result.code, result.err) == (0, "")
    assert "\n  Example:\n    " in result.out
    assert f"flowctl {' '.join(path)}".strip() in result.out.partition("Example:")[2]
    if path == ("handler", "build"):  # its own -o is the file it writes, or one of the three
        assert "-o, --out FILE.afh" in result.out
    elif path == ("job", "checkpoint"):
        assert "-o, --out FILE " in result.out
    else:
        assert "-o, --output [table|json|yaml]" in result.out
    assert flowctl(*path, "-h").out == result.out


UNKNOWN = [
    (("exection",), "no such command: exection; did you mean execution?"),
    (("execution", "lst"), "no such command: lst; did you mean list?"),
    (("frobnicate",), "no such command: frobnicate\n"),
    (("flow", "list", "--limt", "3"), "--limit"),
]


@pytest.mark.parametrize(("args", "said"), UNKNOWN)
def test_unknown_name_is_a_usage_error_with_the_nearest(args, said):
    result = flowctl(*args)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


USAGE = [
    ("run",),
    ("run", "f", "--priority", "urgent"),
    ("run", "f", "--timeout", "-1"),
    ("flow", "list", "--limit", "0"),
    ("flow", "list", "-o", "xml"),
    ("execution", "list", "--since", "99999999999999d"),
    ("handler", "yank", "acme/resize"),
    ("handler", "publish", "/no/such/folder"),
    ("handler", "deprecate", "acme/resize@1.0.0"),
    ("handler", "deprecate", "acme/resize@1.0.0", "why", "--undo"),
    ("handler", "deprecate", "acme/resize", "why"),
    ("key", "give", "acme"),
    ("key", "give", "acme", "labs", "--nobody"),
    ("event", "send", "x", "--data", "{"),
    ("completion", "tcsh"),
]


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
def test_usage_errors_exit_2_and_send_nothing(daemon, args):
    result = flowctl(*args)
    assert (result.code, result.out, daemon.requests) == (2, "", [])
    assert "Error: " in result.err


def test_every_problem_has_an_exit_code():
    kinds = {vars(problems)[name] for name in problems.__all__} - {problems.FlowctlError}
    assert set(EXIT_CODES) == kinds
    assert set(EXIT_CODES.values()) <= {1, 3, 5, 6, 130, 141}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_is_for_the_shell(shell):
    result = flowctl("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_FLOWCTL_COMPLETE={shell}_complete" in result.out


def _completed(words):
    env = {
        **os.environ,
        "_FLOWCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run([script()], env=env, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_knows_commands_and_live_ids(daemon):
    daemon.on("GET", "/v1/flows?limit=100", {"items": [{"id": "order"}, {"id": "refund"}]})
    daemon.on("GET", "/v1/executions?limit=100", {"items": [{"id": "01a"}, {"id": "02b"}]})
    assert _completed("flowctl exec") == ["execution"]
    assert _completed("flowctl run ord") == ["order"]
    assert _completed(f"flowctl --socket {daemon.path} execution show ") == ["01a", "02b"]


def test_completion_is_silent_without_a_daemon(tmp_path):
    assert _completed(f"flowctl --socket {tmp_path}/none run ") == []


def test_bash_takes_the_completion_script():
    text = flowctl("completion", "bash").out
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_list_imports_neither_documents_nor_their_libraries(daemon):
    daemon.on("GET", "/v1/executions?limit=100", {"items": [], "nextCursor": None})
    code = (
        "import sys\nfrom flowctl.main import main\nmain(['execution', 'list'])\n"
        "import json\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert loaded.isdisjoint({"flowmonkeyd", "yaml", "pydantic", "asyncio", "sqlite3", "zipfile"})


def test_reader_that_goes_away_ends_it_quietly(daemon):
    items = [{"id": "x" * 100}] * 100
    daemon.on("GET", "/v1/flows?limit=100", {"items": items * 10, "nextCursor": None})
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run([script(), "flow", "list"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_python_dash_m_is_the_same_program():
    args = [sys.executable, "-m", "flowctl", "completion", "fish"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=20)
    assert done.stdout == flowctl("completion", "fish").out
