"""The configurations of the built-in step types, as models, and the steps they can lead to."""

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

__all__ = ["CONFIGS", "targets"]

Path = Annotated[StrictStr, Field(min_length=1, max_length=1024)]
Duration = Annotated[float, Field(ge=0, le=1e12, strict=True)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Delay(_Model):
    ms: Duration = 0
    seconds: Duration = 0
    minutes: Duration = 0
    hours: Duration = 0

    @model_validator(mode="after")
    def _some(self) -> _Delay:
        if not self.model_fields_set:
            raise ValueError("give at least one of ms, seconds, minutes, hours")
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
    maxWaitMs: Annotated[StrictInt, Field(ge=1, le=10**12)] | None = None


CONFIGS: Mapping[str, type[BaseModel]] = {
    "delay": _Delay,
    "conditional": _Conditional,
    "switch": _Switch,
    "sub-flow": _SubFlow,
    "wait-event": _WaitEvent,
}


def targets(handler_type: str, config: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(where in the configuration, step id) of each step a valid built-in config leads to."""
    if handler_type == "conditional":
        for number, condition in enumerate(config.get("conditions", ())):
            yield f"conditions[{number}].target", condition["target"]
    elif handler_type == "switch":
        for case, target in config.get("cases", {}).items():
            yield f"cases.{case}", target
    if handler_type in ("conditional", "switch") and "default" in config:
        yield "default", config["default"]
