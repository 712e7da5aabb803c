"""JSON Schemas of the ``--json`` documents, from short descriptions.

``data/schema/<kind>.json`` describes the body of the document ``vfiokit/<kind>/v1``:

- ``"string"``, ``"integer"``, ``"number"``, ``"boolean"``, ``"object"``, ``"any"``: a value of that
  type; with ``?`` behind it, also null; ``"'yes'|'no'"``: one of these texts; ``"#name"``: what is
  defined under that name; and after `` -- `` what it means;
- ``[X]``: any number of X; ``{"*": X}``: an object with any keys and X as their values;
- ``{"key": X, …}``: an object with exactly these keys; ``"key?"`` may be left out; ``"--"`` says
  what the object is.

Definitions that several documents share are in ``shared.json``. Those of capabilities come from
the layouts, and those of the columns of lists from :mod:`.column`, so that they cannot differ.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from vfiokit.cli.render import identifier
from vfiokit.errors import UsageError

if TYPE_CHECKING:
    from vfiokit.pci.capability.register import Layout, Register

Schema = dict[str, Any]

FOLDER = os.path.join(os.path.dirname(os.path.dirname(__file__)), "data", "schema")
"""Where the descriptions are."""

_SHARED = "shared"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ENVELOPE = {
    "schema": {"const": "", "description": "Which document this is, with its version."},
    "host": {"type": "string", "description": "What --host named: live, demo, or a file."},
}


def kinds() -> list[str]:
    """The kinds of document that have a schema, sorted."""
    names = (os.path.splitext(name) for name in os.listdir(FOLDER))
    return sorted(name for name, suffix in names if suffix == ".json" and name != _SHARED)


def schema(kind: str) -> Schema:
    """The JSON Schema of ``vfiokit/<kind>/v1``; :class:`UsageError` for a kind that has none."""
    if kind not in kinds():
        raise UsageError(f"there is no document {kind!r}", hint=f"documents: {', '.join(kinds())}")
    source = _read(kind)
    title = source.pop("title")
    own = source.pop("definitions", {})
    body = expand(source)
    envelope = {**_ENVELOPE, "schema": {**_ENVELOPE["schema"], "const": identifier(kind)}}
    body["properties"] = {**envelope, **body["properties"]}
    body["required"] = [*envelope, *body["required"]]
    definitions = {**_shared(), **{name: expand(each) for name, each in own.items()}}
    found = {"$schema": _DIALECT, "$id": f"{kind}-v1.json", "title": title, **body}
    used = _used(found, definitions)
    if used:
        found["$defs"] = {name: definitions[name] for name in sorted(used)}
    return found


def _read(name: str) -> Schema:
    with open(os.path.join(FOLDER, f"{name}.json"), encoding="utf-8") as file:
        found: Schema = json.load(file)
        return found


def _shared() -> Schema:
    definitions = {name: expand(source) for name, source in _read(_SHARED).items()}
    definitions["capability"] = capability_schema()
    definitions["columns"] = {"type": "object", "properties": column_schemas()}
    branch = definitions["branch"]
    branch["properties"] = {**column_schemas(), **branch["properties"]}
    branch["required"] = [*column_schemas(), *branch["required"]]
    return definitions


def _used(schema: Any, definitions: Schema) -> set[str]:  # noqa: ANN401 - any JSON
    """Names that ``schema`` refers to, and what those refer to."""
    found: set[str] = set()
    pending = [schema]
    while pending:
        for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(pending.pop())):
            if name not in found:
                found.add(name)
                pending.append(definitions[name])
    return found


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def expand(source: object) -> Schema:
    """The JSON Schema of a short description."""
    if isinstance(source, str):
        return _simple(*source.partition(" -- ")[::2])
    if isinstance(source, list):
        return {"type": "array", "items": expand(source[0])}
    assert isinstance(source, dict)
    found: Schema = {"type": "object"}
    if "--" in source:
        found["description"] = source["--"]
    if "*" in source:
        return {**found, "additionalProperties": expand(source["*"])}
    members = {name: each for name, each in source.items() if name != "--"}
    found["properties"] = {name.removesuffix("?"): expand(each) for name, each in members.items()}
    found["required"] = [name for name in members if not name.endswith("?")]
    found["additionalProperties"] = False
    return found


def _simple(text: str, description: str) -> Schema:
    name = text.removesuffix("?")
    nullable = name != text
    found: Schema
    if name.startswith("#"):
        found = _reference(name[1:])
        if nullable:
            found = {"anyOf": [found, {"type": "null"}]}
    elif name.startswith("'"):
        options: list[str | None] = [option.strip("'") for option in name.split("|")]
        found = {"enum": [*options, None] if nullable else options}
    elif name == "any":
        found = {}
    else:
        found = {"type": [name, "null"] if nullable else name}
    return {**found, "description": description} if description else found


_TYPES = {
    "uncertain": "boolean",
    **dict.fromkeys(
        (
            "group", "predicted", "numa", "link_width", "max_link_width", "acs_capability",
            "acs_control", "msi", "msix", "irq",
        ),
        "integer?",
    ),
    **dict.fromkeys(("address", "kind", "class", "device", "id", "revision", "acs", "path"),
        "string",
    ),
}  # fmt: skip
"""Types of the columns that are not texts or null."""


def column_schemas() -> Schema:
    """A schema for each column of lists."""
    from vfiokit.cli.column import COLUMNS

    return {
        name: _simple(_TYPES.get(name, "string?"), column.doc) for name, column in COLUMNS.items()
    }


def capability_schema() -> Schema:
    """A capability as ``decode()`` gives it: its registers by the layout of its name."""
    from vfiokit.pci.capability import catalog

    number = {"type": "integer", "minimum": 0}
    return {
        "type": "object",
        "properties": {
            "id": {**number, "description": "Capability ID."},
            "name": {"type": "string", "description": "Stable name; cap-0x… where not described."},
            "title": {"type": "string", "description": "The specification's name."},
            "offset": {**number, "maximum": 4095, "description": "Of its header."},
            "version": {**number, "maximum": 15, "description": "0 for a standard capability."},
            "registers": {
                "type": "object",
                "description": "Registers that exist here and were captured, by name.",
                "additionalProperties": {"type": "object", "additionalProperties": number},
            },
        },
        "required": ["id", "name", "title", "offset", "version", "registers"],
        "allOf": [_layout_rule(layout) for layout in catalog.layouts()],
    }


def _layout_rule(layout: Layout) -> Schema:
    registers = {
        "properties": {register.name: _register(register) for register in layout.registers},
        "patternProperties": {
            f"^{re.escape(repeated.label)}[0-9_a-z]*_{re.escape(register.name)}$": _register(
                register
            )
            for repeated in layout.repeated
            for register in repeated.registers
        },
        "additionalProperties": False,
    }
    return {
        "if": {"properties": {"name": {"const": layout.name}}},
        "then": {
            "$comment": f"{layout.title} {layout.spec}".rstrip(),
            "properties": {
                "title": {"const": layout.title},
                "id": {"const": layout.cap_id},
                "registers": registers,
            },
        },
    }


def _register(register: Register) -> Schema:
    widths = {"value": 8 * register.width}
    widths |= {field.name: field.high - field.low + 1 for field in register.fields}
    return {
        "properties": {name: {"maximum": (1 << bits) - 1} for name, bits in widths.items()},
        "required": list(widths),
        "additionalProperties": False,
    }
