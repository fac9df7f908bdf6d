"""Style as a test: doors and directions of imports, sizes, names, calls, files in step.

Reads the sources with `ast` and runs nothing of them, but for the migrations. Every finding says
`file:line` and what to do instead. An exception is a line in a table here, with its reason; one
that is no longer needed is a finding too.
"""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmonkeyd.errors import CODES
from flowmonkeyd.store.store import migrations

ROOT = Path(__file__).parents[1]
ROOMS = ("flowctl", "flowmonkey", "flowmonkeyd", "images", "sandbox")
PRODUCT = {
    p.relative_to(ROOT).as_posix(): p
    for r in ROOMS
    for p in (ROOT / r).rglob("*.py")
    if "shipped" not in p.parts  # handlers, written as authors write
}
AROUND = {
    p.relative_to(ROOT).as_posix(): p
    for r in ("tests", "benchmarks", "examples", "flowmonkeyd/shipped")
    for p in (ROOT / r).rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in (PRODUCT | AROUND).items()}

# A third-party package comes in at one door.
DOORS = {
    "aiosqlite": ("flowmonkeyd/store/store.py",),
    "cronsim": ("flowmonkeyd/poolsize.py",),
    "click": ("flowctl/", "flowmonkeyd/main.py"),
    "cyclonedx": ("flowctl/build/sbom.py",),
    "detect_secrets": ("flowctl/build/scan.py",),
    # signatures; what is sealed
    "cryptography": ("flowmonkeyd/documents/signing.py", "flowmonkeyd/vault/"),
    "dns": ("sandbox/egress/dns.py",),
    "hvac": ("flowmonkeyd/vault/hashicorp.py",),
    "httptools": ("flowmonkeyd/api/",),
    "libcst": ("flowctl/build/python_source.py",),
    "packageurl": ("flowctl/build/sbom.py",),
    "packaging": ("flowctl/build/wheels.py",),
    "podman": ("flowmonkeyd/podman/libpod.py",),
    "prometheus_client": ("flowmonkeyd/metrics.py",),
    "psutil": ("flowmonkeyd/metrics.py",),
    # requests.py reads a body into its model, routes.py describes the models in OpenAPI
    "pydantic": (
        "flowmonkeyd/config.py",
        "flowmonkeyd/settings.py",
        "flowmonkeyd/documents/",
        *(
            f"flowmonkeyd/api/{name}.py"
            for name in ("images", "jobs", "publishers", "requests", "routes", "vault", "wire")
        ),
    ),
    "pydantic_core": ("flowmonkeyd/jsontext.py", "sandbox/host/messages.py"),
    "pyseccomp": ("sandbox/seccomp.py",),
    "pytest": ("flowmonkey/testing.py",),
    "re2": ("flowmonkeyd/documents/", "flowmonkeyd/builtin.py"),
    "semantic_version": ("flowmonkeyd/documents/versions.py",),
    "starlette": ("flowmonkeyd/api/",),
    "uvicorn": ("flowmonkeyd/api/server.py",),
    "uvloop": ("flowmonkeyd/main.py", "sandbox/host/program.py"),
    "yaml": ("flowmonkeyd/documents/", "flowctl/"),
}
# Who may import what of ours: the first row whose name begins the file's path says it.
OURS_ALLOWED = {
    "sandbox/": "sandbox",
    "images/": "images",
    # A package carries it away: the standard library only.
    "flowmonkey/testing.py": "flowctl.problems flowctl.trial",
    "flowmonkey/": "flowmonkey",
    # `sandbox run` is to do with a folder what a daemon would: the same unpacking, terms, reading.
    "flowctl/trial.py": "flowctl sandbox flowmonkeyd.config flowmonkeyd.masking "
    "flowmonkeyd.packages flowmonkeyd.replies flowmonkeyd.terms flowmonkeyd.vault",
    # A declaration that a class could not have made is refused before it is published.
    "flowctl/build/": "flowctl flowmonkey.rules flowmonkeyd.documents flowmonkeyd.errors",
    "flowctl/": "flowctl flowmonkeyd.documents flowmonkeyd.errors flowmonkeyd.model",
    # The gateway's own reader says what a target is: two readers would differ where it matters.
    "flowmonkeyd/documents/targets.py": "sandbox.egress.rules",
    "flowmonkeyd/documents/": "flowmonkeyd.documents flowmonkeyd.errors flowmonkeyd.jsontext "
    "flowmonkeyd.model flowmonkeyd.syntax",
    "flowmonkeyd/model.py": "",
    "flowmonkeyd/errors.py": "",
    "flowmonkeyd/clock.py": "",
    "flowmonkeyd/jsontext.py": "flowmonkeyd.errors",
    "flowmonkeyd/logs.py": "",
    "flowmonkeyd/systemd.py": "",
    "flowmonkeyd/metrics.py": "",
    "flowmonkeyd/jobmodel.py": "flowmonkeyd.model",
    "flowmonkeyd/lifecycle.py": "flowmonkeyd.jobmodel flowmonkeyd.model flowmonkeyd.errors",
}
# What a part must never import (of ours or of the standard library).
FORBIDDEN = {
    "sandbox/runner.py": "asyncio ctypes sqlite3",
    "sandbox/ctx.py": "asyncio ctypes sqlite3",
    "sandbox/wire.py": "asyncio ctypes sqlite3",
    "flowctl/": "asyncio sqlite3",
    "flowmonkeyd/model.py": "asyncio",
    "flowmonkeyd/lifecycle.py": "asyncio",
    "flowmonkeyd/decide.py": "flowmonkeyd.store flowmonkeyd.clock flowmonkeyd.engine "
    "asyncio random secrets time datetime os json sqlite3",
    "flowmonkeyd/documents/": "asyncio sqlite3 socket subprocess",
    "flowmonkeyd/store/": "flowmonkeyd.engine flowmonkeyd.api flowmonkeyd.documents",
    "flowmonkeyd/engine.py": "flowmonkeyd.api flowmonkeyd.dispatcher flowmonkeyd.stateless sandbox",
    "flowmonkeyd/packages.py": "flowmonkeyd.store flowmonkeyd.engine asyncio",
    "flowmonkeyd/dispatcher.py": "flowmonkeyd.stateless flowmonkeyd.api sandbox",
    "flowmonkeyd/timers.py": "flowmonkeyd.stateless flowmonkeyd.api sandbox",
    "flowmonkeyd/stateless.py": "flowmonkeyd.store flowmonkeyd.api",
    "flowmonkeyd/api/": "sandbox flowmonkeyd.stateless flowmonkeyd.dispatcher flowmonkeyd.timers",
}
BANNED_NAMES = set(
    "util utils helper helpers common misc base core manager service factory wrapper impl".split()
)
BANNED_CALLS = {
    "asyncio.create_task": "start it in the owner's TaskGroup",
    "loop.create_task": "start it in the owner's TaskGroup",
    "asyncio.ensure_future": "start it in the owner's TaskGroup",
    "asyncio.gather": "use a TaskGroup",
    "asyncio.run_coroutine_threadsafe": "use Store.write or a future of the loop",
    "threading.Thread": "use asyncio.to_thread or the writer's thread",
    "unittest.mock.patch": "use the real part, or a fake the conformance suite holds",
}
# (file, rule): why. A rule is a banned call, an import, "__all__", "file" or "lines of NAME".
EXCEPTIONS = {
    ("benchmarks/flowctl_start.py", "threading.Thread"): "flowctl is synchronous, so is its peer",
    ("sandbox/runner.py", "imports asyncio"): "inside the function that runs an async handler",
    ("sandbox/trial/attempts.py", "__all__"): "a handler package: the runner finds its entry",
    ("tests/api/flowctl_server.py", "threading.Thread"): "flowctl is synchronous, so is its peer",
    ("tests/api/test_flowctl_client.py", "threading.Thread"): "the client is synchronous",
    ("tests/stateful/test_jobs_network.py", "threading.Thread"): "the server of a synchronous test",
}
# Modules nobody imports because somebody else starts them; a name in a string counts as well.
STARTED = {
    "flowmonkeyd/agents.py": "the executor of containers, which comes next, uses it",
    "sandbox/egress/container.py": "the executor of containers, which comes next, uses it",
    "flowmonkey/describe.py": "a handler: runs in the sandbox to say what a class declares",
    "flowmonkeyd/testing.py": "for users' tests (contract section 7)",
    "sandbox/trial/attempts.py": "the handler of the probe's trial run",
}
FILE_LINES, FUNCTION_LINES, COLUMNS = 500, 70, 100
SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+(OR|INTO)\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|CREATE\s+\w+\s"
    r"|WITH\s+\w+\s+AS|PRAGMA\s|BEGIN\s+IMMEDIATE)"
)
used_exceptions: set[tuple[str, str]] = set()


def none(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(sorted(findings))


def excepted(name: str, rule: str) -> bool:
    if (name, rule) in EXCEPTIONS:
        used_exceptions.add((name, rule))
        return True
    return False


def module_of(name: str) -> str:
    # The agent's modules lie side by side in /usr/lib/flowmonkey.
    name = name.removeprefix("images/agent/")
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(name) for name in PRODUCT}


def imports(name: str) -> Iterator[tuple[int, str]]:
    """(line, full module) of every import, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} relative import: write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in MODULES else node.module or ""


def within(module: str, names: str) -> bool:
    return any(module == one or module.startswith(one + ".") for one in names.split())


def test_each_third_party_package_has_one_door():
    none(
        [
            f"{name}:{line} imports {module}: its door is {DOORS.get(top, 'not named here yet')}"
            for name in PRODUCT
            for line, module in imports(name)
            if (top := module.partition(".")[0]) not in sys.stdlib_module_names
            and top not in ROOMS
            and not (top in MODULES and name.startswith("images/agent/"))
            and not name.startswith(DOORS.get(top, ("?",)))
        ]
    )


def test_imports_go_downwards():
    found = []
    for name in PRODUCT:
        allowed = next((v for k, v in OURS_ALLOWED.items() if name.startswith(k)), None)
        forbidden = " ".join(v for k, v in FORBIDDEN.items() if name.startswith(k))
        for line, module in imports(name):
            is_ours = module.partition(".")[0] in ROOMS and module != "flowmonkeyd"
            if is_ours and allowed is not None and not within(module, allowed):
                found.append(f"{name}:{line} imports {module}: only {allowed or 'nothing of ours'}")
            if within(module, forbidden) and not excepted(name, f"imports {module}"):
                found.append(f"{name}:{line} imports {module}: hand it over as an argument")
            if module == "flowmonkeyd.main" and name != "flowmonkeyd/__main__.py":
                found.append(f"{name}:{line} imports main: nothing does; move it down")
    none(found)


def test_flowctl_starts_without_the_documents():
    none(
        [
            f"{name}:{node.lineno} imports {module} at the top: do it inside the command"
            for name in PRODUCT
            # build/ is itself imported inside its command
            if name.startswith("flowctl/") and not name.startswith("flowctl/build/")
            for node in TREES[name].body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line, module in imports(name)
            if line == node.lineno
            and within(module, "flowmonkeyd sandbox")
            and module != "flowmonkeyd"
        ]
    )


def test_files_functions_and_lines_are_small():
    found = []
    for name, path in (PRODUCT | AROUND).items():
        count = len(path.read_text().splitlines())
        if count > FILE_LINES and not excepted(name, "file"):
            found.append(f"{name}:{count} lines, {FILE_LINES} at most: a noun is missing, split it")
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > FUNCTION_LINES and not excepted(name, f"lines of {node.name}"):
                    found.append(
                        f"{name}:{node.lineno} {node.name} has {size} lines, {FUNCTION_LINES} "
                        "at most: give a part of it a name"
                    )
    # ruff measures the columns of Python
    for path in [
        *ROOT.glob("flowmonkeyd/store/**/*.sql"),
        *ROOT.glob("s[cy]*/*"),
        *ROOT.glob("*.cfg"),
    ]:
        if path.is_file() and path.suffix != ".py":
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if len(line) > COLUMNS:
                    found.append(f"{path.relative_to(ROOT)}:{number} {len(line)} columns: break it")
    none(found)


def test_names_say_what_a_thing_is():
    found = []
    for name, tree in TREES.items():
        stem = Path(name).stem.lstrip("_")
        if BANNED_NAMES & set(stem.split("_")):
            found.append(f"{name}:1 is called {stem}: name it after the noun it owns")
        if name in PRODUCT and stem in sys.stdlib_module_names and "/" not in name:
            found.append(f"{name}:1 is called like a standard module: choose another noun")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                words = {word.lower() for word in re.findall(r"[A-Z][a-z0-9]*", node.name)}
                if words & BANNED_NAMES:
                    found.append(f"{name}:{node.lineno} class {node.name}: name what it is")
    none(found)


def test_tasks_and_threads_have_owners_and_nothing_is_mocked():
    found = []
    for name, tree in TREES.items():
        used = [
            (node.lineno, rule)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for rule in BANNED_CALLS
            if ast.unparse(node.func).replace("get_running_loop()", "loop").endswith(rule)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (full := f"{node.module}.{alias.name}") in BANNED_CALLS:
                        used.append((node.lineno, full))
        found += [
            f"{name}:{line} uses {rule}: {BANNED_CALLS[rule]}"
            for line, rule in used
            if not excepted(name, rule)
        ]
    none(found)


def test_every_module_says_what_it_owns():
    none(
        [
            f"{name}:1 has no docstring: say what it owns, promises and never does"
            for name, tree in TREES.items()
            if not ast.get_docstring(tree) and tree.body
        ]
    )


def test_all_names_everything_public():
    """ruff (RUF022) sorts `__all__` and pyflakes finds names that do not exist."""
    found = []
    for name in PRODUCT:
        if name.endswith("__main__.py"):
            continue
        public, listed = {}, set()
        for node in TREES[name].body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if not node.name.startswith("_") and not _is_command(node):
                    public[node.name] = node.lineno
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                listed = set(ast.literal_eval(node.value))
        found += [
            f"{name}:{line} {one} is not in __all__: list it, or begin it with an underscore"
            for one, line in public.items()
            if one not in listed and not excepted(name, "__all__")
        ]
    none(found)


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """click finds a command by its decorator, nobody by its name."""
    return any(re.search(r"\.(command|group)\(", ast.unparse(d)) for d in node.decorator_list)


def test_sql_is_written_in_the_store_only():
    found = []
    for name in PRODUCT:
        if name.startswith("flowmonkeyd/store/"):
            continue
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if SQL.match(node.value):
                    found.append(f"{name}:{node.lineno} is SQL: make it a function in store/")
    none(found)


def test_no_module_is_unused():
    imported = {module for name in PRODUCT for _, module in imports(name)}
    # flowctl loads its commands by name, the fork server and packages start programs
    strings = " ".join(
        node.value
        for name in PRODUCT
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    entries = (ROOT / "setup.cfg").read_text()
    none(
        [
            f"{name}:1 is imported by nobody: delete it"
            for name in PRODUCT
            if not name.endswith(("__init__.py", "__main__.py"))
            and module_of(name) not in imported
            and not re.search(rf"\b({re.escape(module_of(name))}|{Path(name).name})\b", strings)
            and f"{module_of(name)}:" not in entries
            and name not in STARTED
        ]
    )


def test_schema_sql_is_the_migrated_database():
    """People read schema.sql first; UPDATE_GOLDEN=1 writes it anew."""
    conn = sqlite3.connect(":memory:")
    for _number, _name, text in migrations():
        conn.executescript(text)
    rows = conn.execute(
        "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
        "ORDER BY rowid"
    ).fetchall()
    conn.close()
    head = (
        "-- The schema after all migrations. UPDATE_GOLDEN=1 pytest tests/test_tidy.py writes it.\n"
    )
    dump = head + "".join(f"\n{sql};\n" for (sql,) in rows)
    golden = ROOT / "flowmonkeyd/store/schema.sql"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(dump)
    assert golden.read_text() == dump, (
        "flowmonkeyd/store/schema.sql:1 is not what the migrations make: run this test with "
        "UPDATE_GOLDEN=1 and read the difference"
    )


def test_every_setting_is_used():
    """One that is accepted and does nothing misleads who sets it."""
    used = {
        node.attr
        for name in PRODUCT
        if name.startswith("flowmonkeyd/")
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute)
    }
    none(
        [
            f"flowmonkeyd/config.py:{field.lineno} {field.target.id} is read by none: use it or go"
            for section in TREES["flowmonkeyd/config.py"].body
            if isinstance(section, ast.ClassDef)
            for field in section.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if field.target.id not in used
        ]
    )


def test_changelog_has_an_unreleased_section():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "\n## [Unreleased]\n" in text, "CHANGELOG.md:1 add `## [Unreleased]` for the next change"


def test_every_code_is_documented():
    pages = {p: p.read_text() for p in (ROOT / "docs").glob("*.md")}
    told = set(re.findall(r"`([A-Z][A-Z_]+)`", "\n".join(pages.values())))
    if not told & set(CODES):
        pytest.skip("NO page in docs/ names a code yet")
    none([f"flowmonkeyd/errors.py:1 {code} is in no page of docs/" for code in set(CODES) - told])


def test_exceptions_are_needed():
    """Looks at the rest of this file again, so it does not depend on the order of tests."""
    for check in (
        test_imports_go_downwards,
        test_all_names_everything_public,
        test_files_functions_and_lines_are_small,
        test_tasks_and_threads_have_owners_and_nothing_is_mocked,
    ):
        try:
            check()
        except AssertionError:
            pass  # its own failure says so
    unused = {one for one in EXCEPTIONS if one[0] in TREES} - used_exceptions
    none([f"tests/test_tidy.py:1 {one} is no exception any more: delete it" for one in unused])
    gone = STARTED.keys() - PRODUCT.keys()
    none([f"tests/test_tidy.py:1 {name} is gone: delete it from STARTED" for name in gone])
