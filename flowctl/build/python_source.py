"""Takes out of Python sources what is for development only; the one door to libcst.

Test values (`test_value=` of flowmonkey's declarations), the constants and imports that only they
used, and imports of test tools are cut out of the text where the syntax tree says they are: every
other byte stays, comments too, and every line keeps its number. What cannot be resolved is a
problem and not a guess. No source is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import libcst as cst
from libcst.helpers import get_full_name_for_node
from libcst.metadata import (
    Assignment,
    BaseAssignment,
    ByteSpanPositionProvider,
    ImportAssignment,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    QualifiedNameProvider,
    QualifiedNameSource,
    Scope,
    ScopeProvider,
)

__all__ = ["LIBRARY", "Stripped", "TestValue", "imports_library", "strip"]

LIBRARY = "flowmonkey"
KEYWORD = "test_value"
# What nobody needs where a handler runs.
DEVELOPMENT = ("flowmonkey.testing", "hypothesis", "pytest", "unittest")
# The calls that read a variable of the environment: its name, and what to take without it.
_FROM_ENVIRONMENT = {"flowmonkey.env", "os.environ.get", "os.getenv"}


@dataclass(frozen=True, slots=True)
class TestValue:
    """A value that must not be found in what is built, and where it was declared."""

    __test__ = False  # pytest takes the name for tests

    line: int
    text: str


@dataclass(slots=True)
class Stripped:
    """A source without what is for development only; `problems` are (line, why)."""

    source: bytes
    values: list[TestValue] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)


def imports_library(source: bytes) -> bool:
    """Whether a source imports flowmonkey. One that is not Python does not."""
    if LIBRARY.encode() not in source:
        return False
    try:
        module = cst.parse_module(source)
    except (cst.ParserSyntaxError, UnicodeDecodeError, LookupError):
        return False
    found = _Imports()
    module.visit(found)
    return any(name == LIBRARY or name.startswith(f"{LIBRARY}.") for name in found.names)


def strip(source: bytes, uses_library: bool) -> Stripped:
    """Strip one source. `uses_library`: some file of the handler imports flowmonkey, so that the
    name `test_value` can mean no other thing. Never raises for a source that is not Python."""
    marks = [name.rpartition(".")[2] for name in DEVELOPMENT] + [KEYWORD] * uses_library
    if not any(mark.encode() in source for mark in marks):
        return Stripped(source)
    try:
        module = cst.parse_module(source.decode("utf-8-sig"))
        wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
        cutter = _Cutter(wrapper)
        wrapper.visit(cutter)
    except cst.ParserSyntaxError as exc:
        return Stripped(source, problems=[(exc.raw_line, "is not Python")])
    except UnicodeDecodeError:
        return Stripped(source, problems=[(1, "is not UTF-8")])
    except RecursionError:
        return Stripped(source, problems=[(1, "is nested too deeply")])
    stripped = Stripped(_without(module.bytes, cutter.cuts), cutter.values, cutter.problems)
    if uses_library and not stripped.problems:
        stripped.problems += _left(stripped.source)
    return stripped


@dataclass(frozen=True, slots=True, order=True)
class _Cut:
    start: int
    end: int
    instead: bytes = b""


def _without(source: bytes, cuts: Sequence[_Cut]) -> bytes:
    """The source without the cuts, with as many lines as before."""
    parts, at = [], 0
    for cut in sorted(set(cuts)):
        if cut.start < at:  # within the one before
            continue
        parts += [source[at : cut.start], cut.instead]
        parts.append(b"\n" * source.count(b"\n", cut.start, cut.end))
        at = cut.end
    return b"".join([*parts, source[at:]])


def _left(source: bytes) -> Iterator[tuple[int, str]]:
    """A test value that this file declares in a way nobody can follow."""
    module = cst.parse_module(source)
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    found = _Mentions()
    wrapper.visit(found)
    for line in found.lines:
        yield line, f"cannot resolve {KEYWORD}: give it to {LIBRARY}.Input itself, or rename it"


class _Imports(cst.CSTVisitor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def visit_Import(self, node: cst.Import) -> None:
        self.names += [alias.evaluated_name for alias in node.names]

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        if node.module is not None and not node.relative:
            self.names.append(get_full_name_for_node(node.module) or "")


class _Mentions(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.lines: list[int] = []

    def visit_Name(self, node: cst.Name) -> None:
        if node.value == KEYWORD:
            self._found(node)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        if node.evaluated_value in (KEYWORD, KEYWORD.encode()):
            self._found(node)

    def _found(self, node: cst.CSTNode) -> None:
        self.lines.append(self.get_metadata(PositionProvider, node).start.line)


class _Cutter(cst.CSTVisitor):
    """Finds what has to go; `cuts` are of the module's bytes."""

    METADATA_DEPENDENCIES = (
        ByteSpanPositionProvider,
        ParentNodeProvider,
        PositionProvider,
        QualifiedNameProvider,
        ScopeProvider,
    )

    def __init__(self, wrapper: MetadataWrapper) -> None:
        self.cuts: list[_Cut] = []
        self.values: list[TestValue] = []
        self.problems: list[tuple[int, str]] = []
        self._wrapper = wrapper
        self._constants: list[Assignment] = []

    def visit_Call(self, node: cst.Call) -> None:
        ours = any(name.startswith(f"{LIBRARY}.") for name in self._imported(node.func))
        for arg in node.args:
            if ours and arg.star == "**":
                self._problem(arg, "cannot look into **: write the declaration's arguments out")
            if ours and arg.keyword is not None and arg.keyword.value == KEYWORD:
                self._cut(arg)
                if isinstance(arg.comma, cst.Comma):
                    self._cut(arg.comma)
                self._value(arg.value)

    def leave_Module(self, original_node: cst.Module) -> None:
        """What only test values used: constants, then imports."""
        for constant in self._constants:
            self._cut_constant(constant)
        scopes = {scope for scope in self._resolved(ScopeProvider).values() if scope is not None}
        statements: dict[cst.CSTNode, dict[cst.ImportAlias, bool]] = {}
        for scope in sorted(scopes, key=self._first):
            for assignment in scope.assignments:
                if isinstance(assignment, ImportAssignment):
                    self._weigh(assignment, statements)
        for statement, aliases in statements.items():
            self._cut_imports(statement, [alias for alias, goes in aliases.items() if goes])

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        name = get_full_name_for_node(node.module) if node.module else None
        if isinstance(node.names, cst.ImportStar) and not node.relative and _development(name):
            self._problem(node, f"import the names you use of {name}, not *")

    # What a test value is

    def _value(self, value: cst.BaseExpression, through: frozenset[str] = frozenset()) -> None:
        text = _literal(value)
        if text is not None:
            self.values.append(TestValue(self._line(value), text))
        elif isinstance(value, cst.List | cst.Tuple | cst.Set):
            for element in value.elements:
                self._value(element.value, through)
        elif isinstance(value, cst.Dict):
            for member in value.elements:
                self._value(member.value, through)
        elif isinstance(value, cst.UnaryOperation):
            self._value(value.expression, through)
        elif (variable := self._variable(value)) is not None:
            if os.environ.get(variable):
                self.values.append(TestValue(self._line(value), os.environ[variable]))
            for fallback in value.args[1:] if isinstance(value, cst.Call) else ():
                self._value(fallback.value, through)
        elif isinstance(value, cst.Name) and value.value in ("None", "True", "False"):
            pass
        elif isinstance(value, cst.Name) and value.value not in through:
            self._constant(value, through)
        else:
            self._problem(value, _UNRESOLVED)

    def _variable(self, value: cst.BaseExpression) -> str | None:
        """The environment's variable that an expression reads."""
        first: cst.BaseExpression | None = None
        if isinstance(value, cst.Call) and self._imported(value.func) & _FROM_ENVIRONMENT:
            first = value.args[0].value if value.args else None
        elif isinstance(value, cst.Subscript) and "os.environ" in self._imported(value.value):
            index = value.slice[0].slice
            first = index.value if isinstance(index, cst.Index) else None
        return _literal(first) if isinstance(first, cst.SimpleString) else None

    def _constant(self, name: cst.Name, through: frozenset[str]) -> None:
        scope = self._resolved(ScopeProvider).get(name)
        found = list(scope[name.value]) if scope is not None else []
        if len(found) == 1 and isinstance(found[0], Assignment):
            statement = self._statement(found[0])
            if statement is not None and statement.value is not None:
                self._constants.append(found[0])
                self._value(statement.value, through | {name.value})
                return
        self._problem(name, _UNRESOLVED)

    def _statement(self, assignment: Assignment) -> cst.Assign | cst.AnnAssign | None:
        node = self.get_metadata(ParentNodeProvider, assignment.node, None)
        if isinstance(node, cst.AssignTarget):
            node = self.get_metadata(ParentNodeProvider, node)
        if isinstance(node, cst.Assign) and len(node.targets) == 1:
            return node
        return node if isinstance(node, cst.AnnAssign) else None

    # What goes with it

    def _cut_constant(self, constant: Assignment) -> None:
        statement = self._statement(constant)
        used = [line for line in self._uses(constant) if line is not None]
        if used:
            self._problem(
                constant.node,
                f"{constant.name} is a test value and used in line {used[0]} too; write it twice, "
                "or read it from the environment",
            )
        elif statement is not None:
            self._cut_statement(statement)

    def _weigh(
        self,
        assignment: ImportAssignment,
        statements: dict[cst.CSTNode, dict[cst.ImportAlias, bool]],
    ) -> None:
        """Note whether an imported name has to go."""
        node, uses = assignment.node, self._uses(assignment)
        if not isinstance(node, cst.Import | cst.ImportFrom) or isinstance(
            node.names, cst.ImportStar
        ):
            return
        for alias in node.names:
            if self._binds(alias) != assignment.name:
                continue
            outside = [line for line in uses if line is not None]
            name = _imported_name(node, alias)
            goes = bool(uses) and not outside
            if _development(name):
                goes = True
                if outside:
                    self._problem(node, f"{name} is for tests, and line {outside[0]} uses it")
            statements.setdefault(node, {})[alias] = goes

    @staticmethod
    def _binds(alias: cst.ImportAlias) -> str:
        return alias.evaluated_alias or alias.evaluated_name

    def _uses(self, assignment: BaseAssignment) -> list[int | None]:
        """The lines that use a name, None for a use that is cut out."""
        found: list[int | None] = []
        for access in sorted(assignment.references, key=lambda a: self._span(a.node)[0]):
            start, _ = self._span(access.node)
            is_cut = any(cut.start <= start < cut.end for cut in self.cuts)
            found.append(None if is_cut else self._line(access.node))
        return found

    def _cut_imports(self, node: cst.CSTNode, going: list[cst.ImportAlias]) -> None:
        assert isinstance(node, cst.Import | cst.ImportFrom)
        assert not isinstance(node.names, cst.ImportStar)
        staying = [alias for alias in node.names if alias not in going]
        if not going:
            return
        if not staying:
            self._cut_statement(node)
            return
        for alias in going:
            self._cut(alias)
            if isinstance(alias.comma, cst.Comma):
                self._cut(alias.comma)
        last = staying[-1]
        if isinstance(last.comma, cst.Comma) and node.names[-1] in going:
            self._cut(last.comma)

    def _cut_statement(self, statement: cst.BaseSmallStatement) -> None:
        line = self.get_metadata(ParentNodeProvider, statement)
        alone = isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1
        top = isinstance(self.get_metadata(ParentNodeProvider, line), cst.Module)
        self._cut(statement, b"" if alone and top else b"pass")

    # Places and names

    def _cut(self, node: cst.CSTNode, instead: bytes = b"") -> None:
        start, end = self._span(node)
        self.cuts.append(_Cut(start, end, instead))

    def _imported(self, node: cst.CSTNode) -> set[str]:
        found = self.get_metadata(QualifiedNameProvider, node, set())
        names = found() if callable(found) else found
        return {one.name for one in names or () if one.source is QualifiedNameSource.IMPORT}

    def _resolved(self, provider: type[ScopeProvider]) -> dict[cst.CSTNode, Scope | None]:
        return dict(self._wrapper.resolve(provider))

    def _first(self, scope: Scope) -> int:
        nodes = [a.node for a in scope.assignments if isinstance(a, Assignment | ImportAssignment)]
        return min((self._span(node)[0] for node in nodes), default=0)

    def _span(self, node: cst.CSTNode) -> tuple[int, int]:
        span = self.get_metadata(ByteSpanPositionProvider, node)
        return span.start, span.start + span.length

    def _line(self, node: cst.CSTNode) -> int:
        return self.get_metadata(PositionProvider, node).start.line

    def _problem(self, node: cst.CSTNode, why: str) -> None:
        self.problems.append((self._line(node), why))


_UNRESOLVED = (
    'cannot tell what this test value is: write it here, as a constant of this file, or as env("…")'
)


def _literal(value: cst.BaseExpression | None) -> str | None:
    """A string's or number's text as it is searched for; other expressions are none."""
    if isinstance(value, cst.SimpleString | cst.ConcatenatedString):
        text = value.evaluated_value
        return text.decode("latin-1") if isinstance(text, bytes) else text
    if isinstance(value, cst.Integer | cst.Float):
        return value.value
    return None


def _imported_name(node: cst.Import | cst.ImportFrom, alias: cst.ImportAlias) -> str | None:
    """The full name of what an alias imports, None for what is relative."""
    if isinstance(node, cst.Import):
        return alias.evaluated_name
    if node.relative or node.module is None:
        return None
    return f"{get_full_name_for_node(node.module)}.{alias.evaluated_name}"


def _development(name: str | None) -> bool:
    return name is not None and any(
        name == one or name.startswith(f"{one}.") for one in DEVELOPMENT
    )
