"""The configurations of the built-in step types, as models, and the steps they can lead to.

A configuration is checked when its flow is applied, patterns included, so that running the step
never meets one it does not understand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)

from flowmonkeyd.documents.problems import json_path

__all__ = ["CONFIGS", "targets"]

# Some thirty years. Wake-up times must stay within what RFC 3339 can write (the year 9999).
WAIT_MS_MAX = 10**12

Path = Annotated[StrictStr, Field(min_length=1, max_length=1024)]
Duration = Annotated[float, Field(ge=0, le=1e12, strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _Delay(_Model):
    ms: Duration = 0
    seconds: Duration = 0
    minutes: Duration = 0
    hours: Duration = 0

    @model_validator(mode="after")
    def _some(self) -> _Delay:
        if not self.model_fields_set:
            raise ValueError("give at least one of ms, seconds, minutes, hours")
        units = ((self.ms, 1), (self.seconds, 1000), (self.minutes, 60_000))
        if sum(n * ms for n, ms in units) + self.hours * 3_600_000 > WAIT_MS_MAX:
            raise ValueError(f"waits longer than {WAIT_MS_MAX} ms, which is thirty years")
        return self


class _Condition(_Model):
    path: Path
    op: Literal[
        "eq", "neq", "gt", "gte", "lt", "lte", "in", "nin", "contains", "startsWith", "endsWith",
        "exists", "notExists", "matches",
    ]  # fmt: skip
    value: Any = None
    target: StrictStr | None

    @model_validator(mode="after")
    def _pattern(self) -> _Condition:
        if self.op == "matches":
            import re2  # linear time; only flows with a pattern pay for the import

            options = re2.Options()
            options.log_errors = False
            try:
                re2.compile(self.value, options=options)
            except (re2.error, TypeError) as exc:
                what = exc.args[0].decode() if isinstance(exc, re2.error) else "not a text"
                raise ValueError(f"the value is not a pattern of RE2: {what}") from None
        return self


class _Conditional(_Model):
    conditions: Annotated[list[_Condition], Field(min_length=1, max_length=100)]
    default: StrictStr | None = None


class _Switch(_Model):
    path: Path
    cases: Annotated[dict[str, StrictStr | None], Field(min_length=1, max_length=1000)]
    default: StrictStr | None = None


class _SubFlow(_Model):
    flowId: Path
    waitForCompletion: StrictBool = True
    tenantId: Path | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    # One child for each item of the list at this path.
    forEach: Path | None = None
    itemKey: Path = "item"

    @field_validator("flowId")
    @classmethod
    def _reference(cls, value: str) -> str:
        if not value.partition("@")[0]:
            raise ValueError("names no flow; write order or order@1.0.0")
        return value


class _WaitEvent(_Model):
    event: Path
    filter: dict[str, Any] | None = None
    maxWaitMs: Annotated[StrictInt, Field(ge=1, le=WAIT_MS_MAX)] | None = None


CONFIGS: Mapping[str, type[BaseModel]] = {
    "delay": _Delay,
    "conditional": _Conditional,
    "switch": _Switch,
    "sub-flow": _SubFlow,
    "wait-event": _WaitEvent,
}


def targets(handler_type: str, config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(where in the configuration, step id) of each step a built-in configuration leads to.

    Parts that are not as they should be lead nowhere: their problems are told elsewhere.
    """
    if handler_type == "conditional":
        conditions = config.get("conditions")
        for number, condition in enumerate(conditions if isinstance(conditions, list) else ()):
            if isinstance(condition, Mapping) and "target" in condition:
                yield from _target(f"conditions[{number}].target", condition["target"])
    elif handler_type == "switch":
        cases = config.get("cases")
        for case, target in cases.items() if isinstance(cases, Mapping) else ():
            yield from _target(json_path(("cases", case)).removeprefix("$."), target)
    if handler_type in ("conditional", "switch") and "default" in config:
        yield from _target("default", config["default"])


def _target(where: str, target: Any) -> Iterator[tuple[str, str | None]]:
    if target is None or isinstance(target, str):
        yield where, target
