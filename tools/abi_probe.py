#!/usr/bin/env python3
"""Ask a C compiler what Linux's uapi headers say, and write the answers as JSON.

The record holds every constant and struct of the headers, not only those that vfiokit defines,
so that ``tests/abi`` can also name what a newer header added. Kept records are refreshed with::

    tools/abi_probe.py --write                   # the headers the system compiler finds
    tools/abi_probe.py --write --zig             # those of an installed ``ziglang`` package

``--zig`` needs ``pip install ziglang`` (about 400 MB: use a throw-away environment) and brings
headers newer than most distributions have.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

RECORDS = Path(__file__).resolve().parent.parent / "tests" / "abi"
# Without a target zig takes the system's own, old headers; its sanitizer traps on ``1 << 31``.
ZIG = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl"]
ZIG += ["-fno-sanitize=undefined"]

HEADERS = {
    "vfio": ("linux/vfio.h", "vfio_", "VFIO_"),
    "iommufd": ("linux/iommufd.h", "iommu", "IOMMU"),
    "pci_regs": ("linux/pci_regs.h", "", "PCI_"),
}
"""Module of ``vfiokit.abi`` → header, prefix of its structs (empty: none), of its constants."""

# pci_regs.h uses __GENMASK and _BITUL without including what defines them.
_INCLUDE = """#include <stddef.h>
#include <linux/version.h>
#include <linux/const.h>
#if __has_include(<linux/bits.h>)
#include <asm/bitsperlong.h>
#include <linux/bits.h>
#endif
"""
_MACRO = re.compile(r"^#define (\w+) (.+)$", re.MULTILINE)
_ENUM = re.compile(r"\benum\s*\w*\s*\{([^}]*)\}")
_TOKEN = re.compile(r"\w+|[{}\[\];,*]")
_NUMBERS = {"__u8": "u8", "__u16": "u16", "__u32": "u32", "__u64": "u64", "__aligned_u64": "u64"}
_NUMBERS |= {"__s32": "s32", "__s64": "s64", "__le64": "u64"}


class Leaf(NamedTuple):
    """One scalar of a struct, or its flexible array: C path, type, whether it is an array."""

    path: str
    kind: str
    array: bool


class ProbeError(Exception):
    """The compiler is missing, or does not find or accept the headers."""


def probe(compiler: list[str]) -> dict[str, Any]:
    """The record of the headers that ``compiler`` (a command line) finds.

    Returns ``{"linux": "6.1", MODULE: {"constants": {...}, "structs": {...}}}``; a struct is
    ``{"size": bytes, "fields": {path: [type, offset]}}``. A header younger than the others is
    left out where it does not exist. Raises :class:`ProbeError`.
    """
    record: dict[str, Any] = {}
    for module, (header, struct_prefix, constant_prefix) in HEADERS.items():
        if not _run(compiler, f"#if __has_include(<{header}>)\n1\n#endif\n", "-E", "-P").strip():
            continue
        include = _INCLUDE + f"#include <{header}>\n"
        macros = dict(_MACRO.findall(_run(compiler, include, "-dM", "-E")))
        text = _run(compiler, include, "-E", "-P")
        enumerators = [
            part.split("=")[0].strip() for body in _ENUM.findall(text) for part in body.split(",")
        ]
        constants = sorted(
            {name for name in (*macros, *enumerators) if name.startswith(constant_prefix)}
        )
        structs = _structs(text, struct_prefix) if struct_prefix else {}
        answers = _ask(compiler, include, constants, macros, structs)
        record["linux"] = answers.pop("linux")
        record[module] = answers
    if not record:
        raise ProbeError(f"{shlex.join(compiler)} finds none of the kernel's headers")
    return record


def _ask(
    compiler: list[str],
    include: str,
    constants: list[str],
    macros: dict[str, str],
    structs: dict[str, list[Leaf]],
) -> dict[str, Any]:
    lines = ['printf("L %d.%d\\n", LINUX_VERSION_CODE >> 16, LINUX_VERSION_CODE >> 8 & 255);']
    for name in constants:
        if macros.get(name, "").startswith('"'):
            lines.append(f'printf("C {name} \\"%s\\"\\n", {name});')
        else:
            lines.append(f'printf("C {name} %lld\\n", (long long)({name}));')
    for name, leaves in structs.items():
        lines.append(f'printf("S {name} %zu\\n", sizeof(struct {name}));')
        lines += [
            f'printf("F {name} {leaf.path} {leaf.kind}{"[]" if leaf.array else ""} %zu\\n", '
            f"offsetof(struct {name}, {leaf.path}));"
            for leaf in leaves
        ]
    source = include + "#include <stdio.h>\nint main(void) {\n" + "\n".join(lines) + "\n}\n"
    answers: dict[str, Any] = {"constants": {}, "structs": {}}
    for line in _compile_and_run(compiler, source).splitlines():
        what, name, *rest = line.split(" ", 4)
        if what == "L":
            answers["linux"] = name
        elif what == "C":
            value = rest[0]
            answers["constants"][name] = value.strip('"') if value[0] == '"' else int(value)
        elif what == "S":
            answers["structs"][name] = {"size": int(rest[0]), "fields": {}}
        else:
            answers["structs"][name]["fields"][rest[0]] = [rest[1], int(rest[2])]
    return answers


def _structs(text: str, prefix: str) -> dict[str, list[Leaf]]:
    """Every ``struct PREFIX... { }`` of preprocessed C, nested structs as dotted paths."""
    found: dict[str, list[Leaf]] = {}
    for match in re.finditer(rf"\bstruct\s+({prefix}\w+)\s*\{{", text):
        tokens = _TOKEN.findall(_balanced(text, match.end()))
        found[match.group(1)] = _members(tokens, found)
    return found


def _balanced(text: str, start: int) -> str:
    depth, end = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return text[start : end - 1]


def _members(tokens: list[str], known: dict[str, list[Leaf]]) -> list[Leaf]:
    leaves: list[Leaf] = []
    while tokens:
        if tokens[0] in ("union", "struct") and tokens[1] == "{":
            inner, depth, at = [], 1, 2
            while depth:
                depth += {"{": 1, "}": -1}.get(tokens[at], 0)
                inner.append(tokens[at])
                at += 1
            nested = _members(inner[:-1], known)
            name = tokens[at] + "." if tokens[at] != ";" else ""
            leaves += [leaf._replace(path=name + leaf.path) for leaf in nested]
            tokens = tokens[tokens.index(";", at) + 1 :]
            continue
        end = tokens.index(";")
        leaves += _declaration(tokens[:end], known)
        tokens = tokens[end + 1 :]
    return leaves


def _declaration(words: list[str], known: dict[str, list[Leaf]]) -> list[Leaf]:
    array = "[" in words
    end = words.index("[") if array else len(words)
    name = words[end - 1]
    if array and words[end + 1].isdecimal():
        elements = (f"{name}[{index}]" for index in range(int(words[end + 1])))
        return [leaf for one in elements for leaf in _declaration([*words[: end - 1], one], known)]
    if words[0] == "struct" and not array:
        return [leaf._replace(path=f"{name}.{leaf.path}") for leaf in known[words[1]]]
    if words[0] == "struct":
        return [Leaf(name, words[1], True)]
    return [Leaf(name, "u64" if "*" in words else _NUMBERS.get(words[0], words[0]), array)]


def _run(compiler: list[str], source: str, *options: str) -> str:
    command = [*compiler, "-x", "c", *options, "-"]
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProbeError(f"cannot run {compiler[0]}: {error}") from error
    if done.returncode:
        raise ProbeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _compile_and_run(compiler: list[str], source: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probe"
        _run(compiler, source, "-w", "-o", str(program))
        return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Print the record, or write it beside the tests."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cc", default="gcc", help="compiler command line (default: gcc)")
    parser.add_argument("--zig", action="store_true", help="use the installed ziglang package")
    parser.add_argument("--write", action="store_true", help="write tests/abi/linux-X.Y.json")
    options = parser.parse_args()
    try:
        record = probe(ZIG if options.zig else shlex.split(options.cc))
    except ProbeError as error:
        print(f"abi_probe: {error}", file=sys.stderr)
        return 1
    text = json.dumps(record, indent=1, sort_keys=True)
    text = re.sub(r'\[\s+("\w+(?:\[\])?"),\s+(\d+)\s+\]', r"[\1, \2]", text) + "\n"
    if options.write:
        path = RECORDS / f"linux-{record['linux']}.json"
        path.write_text(text)
        print(path)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
