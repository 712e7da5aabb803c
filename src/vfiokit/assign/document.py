"""The plan of an assignment: a value that a person reads, a file keeps, and ``apply`` follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vfiokit.assign.binding import Action, Change, check_driver_name
from vfiokit.errors import FormatError, VfiokitError
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Identity


class Role(StrEnum):
    """Why a plan changes a function."""

    ASSIGN = "assign"
    """It was asked for: it ends bound to the plan's driver."""
    RELEASE = "release"
    """It shares the group of one that was: it ends unbound."""


class Fate(StrEnum):
    """What a plan means for a member of a target's IOMMU group."""

    ASSIGNED = "assigned"
    RELEASED = "released"
    STAYS = "stays"
    """Unchanged, and no obstacle."""
    BLOCKS = "blocks"
    """Unchanged, and bound to a driver of the host: the group is not viable."""


@dataclass(frozen=True, slots=True)
class Target:
    """A function that the plan changes, as it was when the plan was made."""

    bdf: Bdf
    role: Role
    identity: Identity
    label: str
    """Vendor and device in words where known, else the class code."""
    driver: str | None
    driver_override: str | None
    group: int | None
    group_predicted: bool
    """``group`` counts predicted groups; the kernel recorded none."""


@dataclass(frozen=True, slots=True)
class Member:
    """A function in the IOMMU group of a target."""

    bdf: Bdf
    group: int
    driver: str | None
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class Step:
    """One change, and the changes that take it back."""

    id: str
    description: str
    reads: tuple[tuple[str, str | None], ...]
    """Files read while planning, with what they said (``None``: absent or unset)."""
    do: Change
    undo: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something of the host that the plan takes away."""

    bdf: Bdf
    kind: str
    name: str
    detail: str
    critical: bool
    in_use: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """A reason not to apply the plan, with the stable id that forces it."""

    id: str
    text: str
    forcible: bool
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an assignment will do, lose and needs. Changes nothing by itself."""

    driver: str
    include_group: bool
    host: str
    """Fingerprint of the host, ``""`` where it has no identity."""
    targets: tuple[Target, ...]
    members: tuple[Member, ...]
    steps: tuple[Step, ...]
    losses: tuple[Loss, ...]
    warnings: tuple[str, ...]
    blockers: tuple[Blocker, ...]
    forced: frozenset[str] = frozenset()
    """Ids of blockers to override."""

    @property
    def changes_nothing(self) -> bool:
        """Whether the host is already as wanted."""
        return not self.steps

    def open_blockers(self, force: Iterable[str] = ()) -> tuple[Blocker, ...]:
        """Blockers that neither the plan nor ``force`` overrides."""
        forced = self.forced | frozenset(force)
        return tuple(each for each in self.blockers if not each.forcible or each.id not in forced)

    def preconditions(self) -> dict[str, str]:
        """The facts that must still hold when the plan is applied, by name."""
        facts = {}
        for target in self.targets:
            facts[f"{target.bdf} identity"] = identity_text(target.identity)
            facts[f"{target.bdf} driver"] = target.driver or "none"
            facts[f"{target.bdf} driver_override"] = target.driver_override or "none"
            if not target.group_predicted:
                facts[f"{target.bdf} group"] = "none" if target.group is None else str(target.group)
                facts[f"{target.bdf} group members"] = " ".join(
                    str(member.bdf) for member in self.members if member.group == target.group
                )
        return facts

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON: the ``plan`` of a document ``vfiokit/plan/v1``."""
        return {
            "driver": self.driver,
            "include_group": self.include_group,
            "host": self.host,
            "forced": sorted(self.forced),
            "targets": [_target_json(target) for target in self.targets],
            "members": [
                {
                    "bdf": str(member.bdf),
                    "group": member.group,
                    "driver": member.driver,
                    "fate": member.fate.value,
                    "why": member.why,
                }
                for member in self.members
            ],
            "steps": [_step_json(step) for step in self.steps],
            "losses": [
                {
                    "bdf": str(loss.bdf),
                    "kind": loss.kind,
                    "name": loss.name,
                    "detail": loss.detail,
                    "critical": loss.critical,
                    "in_use": loss.in_use,
                    "text": loss.text,
                }
                for loss in self.losses
            ],
            "warnings": list(self.warnings),
            "blockers": [
                {"id": each.id, "text": each.text, "forcible": each.forcible, "hint": each.hint}
                for each in self.blockers
            ],
        }

    @classmethod
    def from_json(cls, document: object, *, path: str = "") -> Plan:
        """Read what :meth:`to_json` wrote; unknown keys are ignored.

        Raises :class:`FormatError` (naming ``path``) for anything that is not such a plan,
        including one whose steps name other files than their own.
        """
        try:
            root = _Reader(document)
            return cls(
                driver=check_driver_name(root.text("driver")),
                include_group=root.flag("include_group"),
                host=root.text("host"),
                targets=tuple(_read_target(each) for each in root.rows("targets")),
                members=tuple(_read_member(each) for each in root.rows("members")),
                steps=tuple(_read_step(each) for each in root.rows("steps")),
                losses=tuple(_read_loss(each) for each in root.rows("losses")),
                warnings=root.texts("warnings"),
                blockers=tuple(
                    Blocker(each.text("id"), each.text("text"), each.flag("forcible"),
                            each.text("hint"))
                    for each in root.rows("blockers")
                ),
                forced=frozenset(root.texts("forced")),
            )  # fmt: skip
        except (ValueError, VfiokitError) as error:
            raise FormatError(f"not a plan: {error}", path=path) from None


def identity_text(identity: Identity) -> str:
    """``10de:25b6 10de:157e class 030200 rev a1``, in hex."""
    return (
        f"{identity.vendor_id:04x}:{identity.device_id:04x} "
        f"{identity.subsystem_vendor_id:04x}:{identity.subsystem_device_id:04x} "
        f"class {identity.class_code:06x} rev {identity.revision:02x}"
    )


def _target_json(target: Target) -> dict[str, Any]:
    return {
        "bdf": str(target.bdf),
        "role": target.role.value,
        "identity": {
            name: f"{value:#x}"
            for name, value in zip(Identity._fields, target.identity, strict=True)
        },
        "label": target.label,
        "driver": target.driver,
        "driver_override": target.driver_override,
        "group": target.group,
        "group_predicted": target.group_predicted,
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "id": step.id,
        "description": step.description,
        "reads": [{"path": path, "value": value} for path, value in step.reads],
        "do": _change_json(step.do),
        "undo": [_change_json(change) for change in step.undo],
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "action": change.action.value,
        "bdf": str(change.bdf),
        "name": change.name,
        "path": change.path,
        "data": change.data.decode(),
    }


class _Reader:
    """A JSON object whose members are asked for by type; ``ValueError`` says which one is wrong."""

    def __init__(self, value: object, where: str = "document") -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{where} is no object")
        self._value: dict[str, object] = value
        self._where = where

    def _get(self, key: str, kinds: tuple[type, ...]) -> Any:  # noqa: ANN401
        value = self._value.get(key, ...)
        # bool is an int to Python, but not in a plan.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{key} of {self._where} is missing or of the wrong type")
        return value

    def text(self, key: str) -> str:
        value: str = self._get(key, (str,))
        return value

    def optional_text(self, key: str) -> str | None:
        value: str | None = self._get(key, (str, type(None)))
        return value

    def number(self, key: str) -> int:
        value: int = self._get(key, (int,))
        return value

    def optional_number(self, key: str) -> int | None:
        value: int | None = self._get(key, (int, type(None)))
        return value

    def flag(self, key: str) -> bool:
        value: bool = self._get(key, (bool,))
        return value

    def optional_flag(self, key: str) -> bool | None:
        value: bool | None = self._get(key, (bool, type(None)))
        return value

    def bdf(self, key: str) -> Bdf:
        return Bdf.parse(self.text(key))

    def reader(self, key: str) -> _Reader:
        return _Reader(self._value.get(key), f"{key} of {self._where}")

    def rows(self, key: str) -> list[_Reader]:
        return [
            _Reader(each, f"{key}[{index}]") for index, each in enumerate(self._get(key, (list,)))
        ]

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, (list,))
        if not all(isinstance(each, str) for each in values):
            raise ValueError(f"{key} of {self._where} holds something else than text")
        return tuple(values)


def _read_target(row: _Reader) -> Target:
    identity = row.reader("identity")
    return Target(
        row.bdf("bdf"),
        Role(row.text("role")),
        Identity(*(int(identity.text(name), 16) for name in Identity._fields)),
        row.text("label"),
        row.optional_text("driver"),
        row.optional_text("driver_override"),
        row.optional_number("group"),
        row.flag("group_predicted"),
    )


def _read_member(row: _Reader) -> Member:
    return Member(
        row.bdf("bdf"),
        row.number("group"),
        row.optional_text("driver"),
        Fate(row.text("fate")),
        row.text("why"),
    )


def _read_loss(row: _Reader) -> Loss:
    return Loss(
        row.bdf("bdf"),
        row.text("kind"),
        row.text("name"),
        row.text("detail"),
        row.flag("critical"),
        row.optional_flag("in_use"),
        row.text("text"),
    )


def _read_step(row: _Reader) -> Step:
    return Step(
        row.text("id"),
        row.text("description"),
        tuple((each.text("path"), each.optional_text("value")) for each in row.rows("reads")),
        _read_change(row.reader("do")),
        tuple(_read_change(each) for each in row.rows("undo")),
    )


def _read_change(row: _Reader) -> Change:
    action = Action(row.text("action"))
    name = row.optional_text("name")
    if action is Action.SET_OVERRIDE:
        if name is not None and (not name or "\n" in name or "\0" in name):
            raise ValueError(f"{name!r} is no driver_override")
    else:
        check_driver_name(name or "")
    change = Change(action, row.bdf("bdf"), name)
    if row.text("path") != change.path or row.text("data") != change.data.decode():
        raise ValueError(f"a step writes to {row.text('path')}, not to {change.path}")
    return change
