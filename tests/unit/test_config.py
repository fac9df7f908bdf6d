"""Where settings come from, which wins, and how each mistake is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from flowmonkeyd.config import ConfigError, Loaded, load, print_config

HOME = Path("/home/mia")


def loaded(text: str = "", tmp_path: Path | None = None, environ=(), **flags: str) -> Loaded:
    given = {key.replace("__", "."): value for key, value in flags.items()}
    if tmp_path is not None:
        file = tmp_path / "c.toml"
        file.write_text(text)
        given["config"] = str(file)
    return load(given, dict(environ), is_root=False, home=HOME)


def problems(*args, **flags) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*args, **flags)
    return caught.value.lines


@pytest.mark.parametrize(
    ("is_root", "environ", "socket", "data"),
    [
        (True, {}, "/run/flowmonkey/flowmonkeyd.sock", "/var/lib/flowmonkey"),
        # root's own session says nothing about a system service
        (
            True,
            {"XDG_RUNTIME_DIR": "/run/user/0", "XDG_DATA_HOME": "/x"},
            "/run/flowmonkey/flowmonkeyd.sock",
            "/var/lib/flowmonkey",
        ),
        (
            False,
            {},
            "/home/mia/.local/state/flowmonkey/flowmonkeyd.sock",
            "/home/mia/.local/share/flowmonkey",
        ),
        (
            False,
            {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_DATA_HOME": "/d"},
            "/run/user/7/flowmonkey/flowmonkeyd.sock",
            "/d/flowmonkey",
        ),
        (
            False,
            {"XDG_RUNTIME_DIR": "", "XDG_DATA_HOME": ""},
            "/home/mia/.local/state/flowmonkey/flowmonkeyd.sock",
            "/home/mia/.local/share/flowmonkey",
        ),
    ],
)
def test_default_places_are_the_contract_s(is_root, environ, socket, data) -> None:
    environ = {"FLOWMONKEY_CONFIG": "/dev/null", **environ}
    settings = load({}, environ, is_root, HOME).settings
    assert (settings.socket, settings.dataDir) == (Path(socket), Path(data))


def test_default_file_is_read_where_it_exists(tmp_path) -> None:
    for folder, environ in ((".config", {}), ("xdg", {"XDG_CONFIG_HOME": str(tmp_path / "xdg")})):
        file = tmp_path / folder / "flowmonkey/flowmonkeyd.toml"
        assert load({}, environ, False, tmp_path).settings.log.level == "info"
        file.parent.mkdir(parents=True)
        file.write_text('log.level = "debug"')
        found = load({}, environ, False, tmp_path)
        assert found.settings.log.level == "debug"
        assert found.origins["log.level"] == str(file)


def test_flag_beats_environment_beats_file_beats_default(tmp_path) -> None:
    text = "[shutdown]\ngraceMs = 1\n[limits]\nkeysMax = 1\n[sandbox]\nslots = 1\n"
    environ = {
        "FLOWMONKEY_SHUTDOWN__GRACE_MS": "2",
        "FLOWMONKEY_LIMITS__KEYS_MAX": "2",
        "FLOWMONKEY_LIMITS__DEPTH_MAX": "",  # an empty variable is not set
    }
    it = loaded(text, tmp_path, environ, shutdown__graceMs="3")
    settings = it.settings
    assert settings.shutdown.graceMs == 3
    assert settings.limits.keysMax == 2
    assert settings.sandbox.slots == 1
    assert settings.limits.depthMax == 15
    file = str(tmp_path / "c.toml")
    keys = ("shutdown.graceMs", "limits.keysMax", "sandbox.slots", "limits.depthMax")
    origins = ["flag", "FLOWMONKEY_LIMITS__KEYS_MAX", file, "default"]
    assert [it.origins[key] for key in keys] == origins


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("api.socketMode", "0o600", 0o600),
        ("limits.stepsMax", "2_000", 2000),
        ("sandbox.require", "rlimits, seccomp", ("rlimits", "seccomp")),
        ("sandbox.require", "", ()),
        ("sandbox.python", "/usr/bin/python3", "/usr/bin/python3"),
        ("log.format", "json", "json"),
        ("dataDir", "~/fm", HOME / "fm"),
        ("dataDir", "/srv/fm", Path("/srv/fm")),
        ("socket", "fm.sock", Path.cwd() / "fm.sock"),
    ],
)
def test_text_becomes_the_setting_s_type(key, text, value) -> None:
    settings = load({key: text}, {"FLOWMONKEY_CONFIG": "/dev/null"}, False, HOME).settings
    for name in key.split("."):
        settings = getattr(settings, name)
    assert settings == value


def test_every_setting_has_a_variable_that_print_config_names() -> None:
    values = {"FLOWMONKEY_API__BODY_BYTES_MAX": "70000", "FLOWMONKEY_DATA_DIR": "/d"}
    shown = print_config(loaded(environ={**values, "FLOWMONKEY_CONFIG": "/dev/null"}))
    assert 'dataDir = "/d"  # FLOWMONKEY_DATA_DIR' in shown.splitlines()
    assert "bodyBytesMax = 70000  # FLOWMONKEY_API__BODY_BYTES_MAX" in shown.splitlines()


def test_print_config_can_be_used_as_the_file(tmp_path) -> None:
    first = loaded(
        'socket = "/tmp/a \\"b\\" \\\\ ü.sock"\nsandbox.require = ["proc"]\napi.socketMode = 0o600',
        tmp_path,
    )
    shown = print_config(first)
    assert "socketMode = 0o600" in shown
    tomllib.loads(shown)
    assert loaded(shown, tmp_path).settings == first.settings


# One mistake a row: the file's text, and what the line says after the file's name.
MISTAKES = [
    ("colour = 1", "colour: unknown key; see `flowmonkeyd --print-config`"),
    ("[colour]", "colour: unknown key; see `flowmonkeyd --print-config`"),
    ("[log]\ncolour = 1", "log.colour: unknown key; see `flowmonkeyd --print-config`"),
    ("log.level.x = 1", "log.level.x: unknown key; see `flowmonkeyd --print-config`"),
    ("shutdown = 5", "shutdown = 5: should be a section"),
    ("[[shutdown]]\ngraceMs = 1", "shutdown = [{'graceMs': 1}]: should be a section"),
    ("shutdown.graceMs = -1", "shutdown.graceMs = -1: should be at least 0"),
    ("shutdown.graceMs = 90_000", "shutdown.graceMs = 90000: should be at most 80000"),
    ("limits.keysMax = '5'", "limits.keysMax = '5': should be a whole number, not text"),
    ("limits.keysMax = 5.0", "limits.keysMax = 5.0: should be a whole number, not a number"),
    ("limits.keysMax = true", "limits.keysMax = True: should be a whole number, not true"),
    ("log.level = 'loud'", "log.level = 'loud': should be debug, info, warning or error"),
    ("sandbox.python = 3", "sandbox.python = 3: should be text, not a number"),
    ("sandbox.require = 'proc'", "sandbox.require = 'proc': should be a list, not text"),
    ("sandbox.require = [1]", "sandbox.require = [1]: should be text, not a number"),
    ("socket = 5", "socket = 5: should be a path"),
    ("dataDir = ''", "dataDir = '': should be a path"),
]


@pytest.mark.parametrize(("text", "line"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_each_mistake_is_one_line_with_place_key_value_and_reason(tmp_path, text, line) -> None:
    assert problems(text, tmp_path) == [f"{tmp_path}/c.toml: {line}"]


def test_all_mistakes_are_told_at_once(tmp_path) -> None:
    environ = {"FLOWMONKEY_SANDBOX__SLOTS": "many", "FLOWMONKEY_LIMIT__KEYS_MAX": "1"}
    # a section that is a number in the file must not hide what a variable puts below it
    environ["FLOWMONKEY_SHUTDOWN__GRACE_MS"] = "-1"
    lines = problems("shutdown = 5", tmp_path, environ, dataDir="", limits__depthMax="0x1ff")
    assert sorted(line.partition(": ")[2].partition(":")[0] for line in lines) == [
        "dataDir = ''",
        "limits.depthMax = 511",
        "sandbox.slots = 'many'",
        "shutdown = 5",
        "shutdown.graceMs = -1",
        "unknown variable; see `flowmonkeyd --print-config` for keys",
    ]


def test_unknown_layer_is_refused_with_those_that_exist(tmp_path) -> None:
    (line,) = problems('sandbox.require = ["proc", "moat"]', tmp_path)
    assert line.startswith(f"{tmp_path}/c.toml: sandbox.require: unknown layer 'moat'; the layers")
    assert "seccomp" in line


def test_file_that_was_asked_for_must_exist_and_be_toml(tmp_path) -> None:
    gone = tmp_path / "gone.toml"
    assert problems(config=str(gone)) == [f"{gone}: there is no such file"]
    for content in (b"a = ", b"a = '\xff'"):
        gone.write_bytes(content)
        (line,) = problems(config=str(gone))
        assert line.startswith(f"{gone}: cannot read the configuration: ")
    (line,) = problems(environ={"FLOWMONKEY_CONFIG": str(tmp_path)})
    assert line.startswith(f"{tmp_path}: cannot read the configuration: ")


def test_settings_do_not_change_once_they_are_loaded() -> None:
    settings = loaded(environ={"FLOWMONKEY_CONFIG": "/dev/null"}).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.shutdown.graceMs = 5


def test_a_handler_s_own_table_is_kept_under_its_type(tmp_path) -> None:
    text = """
        [handlers."acme/resize"]
        policy = "reuse"
        reuseUses = 7
        [handlers."acme/resize".network]
        allow = ["*.example.com:443"]
        [handlers.plain]
    """
    flags = {'handlers."a.b".privateNetworks': "127.0.0.0/8, ::1/128"}
    found = loaded(text, tmp_path, **flags)
    handlers = found.settings.handlers
    assert handlers.of("acme/resize").policy == "reuse"
    assert handlers.of("acme/resize").reuseUses == 7
    assert handlers.of("acme/resize").network.allow == ("*.example.com:443",)
    assert handlers.of("a.b").privateNetworks == ("127.0.0.0/8", "::1/128")
    assert found.origins['handlers."acme/resize".policy'] == f"{tmp_path}/c.toml"
    assert found.origins['handlers."acme/resize".reuseIdleMs'] == "default"
    assert found.origins['handlers."a.b".privateNetworks'] == "flag"
    shown = print_config(found)
    again = loaded(shown, tmp_path).settings
    assert again.handlers.of("acme/resize") == handlers.of("acme/resize")
    assert 'allow = ["*.example.com:443"]' in shown


def test_sections_within_sections_have_variables_too() -> None:
    environ = {
        "FLOWMONKEY_CONFIG": "/dev/null",
        "FLOWMONKEY_SANDBOX__NETWORK__BYTES_MAX": "5000",
        "FLOWMONKEY_SANDBOX__NETWORK__PORTS": "80, 8080",
        "FLOWMONKEY_SANDBOX__NETWORK__DENY": "a.org,10.0.0.0/8",
    }
    found = loaded(environ=environ)
    network = found.settings.sandbox.network
    assert (network.bytesMax, network.ports) == (5000, (80, 8080))
    assert network.deny == ("a.org", "10.0.0.0/8")
    assert found.origins["sandbox.network.deny"] == "FLOWMONKEY_SANDBOX__NETWORK__DENY"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("handlers = 1", "handlers = 1: should be a section"),
        ("handlers.x = 1", "handlers.x = 1: should be a section"),
        ("[handlers.x]\nspeed = 1", "handlers.x.speed: unknown key; see"),
        ('[handlers."a/b".network]\nports = [1]', 'handlers."a/b".network.ports: unknown key; see'),
        ('[handlers."a/b"]\npolicy = "kept"', "handlers.\"a/b\".policy = 'kept': should be fresh"),
        ("[handlers.x]\nreuseUses = 0", "handlers.x.reuseUses = 0: should be at least 1"),
        ("[handlers.x]\nprivateNetworks = ['lo']", "handlers.x.privateNetworks = ['lo']: 'lo' sho"),
        (
            "[handlers.x.network]\nallow = ['a b']",
            "handlers.x.network.allow = ['a b']: cannot use",
        ),
        ("[sandbox.network]\ndeny = ['*']", "sandbox.network.deny = ['*']: cannot use the"),
        ("[sandbox.network]\nports = [0]", "sandbox.network.ports = [0]: should be at least 1"),
        ("sandbox.network = 1", "sandbox.network = 1: should be a section"),
    ],
)
def test_a_mistake_in_a_table_of_a_handler_is_one_line(tmp_path, text, line) -> None:
    (found,) = problems(text, tmp_path)
    assert found.startswith(f"{tmp_path}/c.toml: {line}")


def test_a_table_for_what_can_be_no_handler_is_refused(tmp_path) -> None:
    assert problems('[handlers."a b"]\npolicy = "reuse"', tmp_path) == [
        'handlers."a b": is no handler\'s type'
    ]
