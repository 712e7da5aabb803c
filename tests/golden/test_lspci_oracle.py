"""Every word that lspci writes about a capability is what we read there.

The dumps are those of pciutils' own tests, and the configuration spaces of the packaged server;
lspci decodes them here and now. Its words are taken apart by their form (:mod:`lspci_text`), a
table says what each means (:mod:`lspci_table`), and a word of pciutils 3.9 that the table does not
know fails: nothing is left out silently. Of other versions, words unknown here are passed over.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lspci_table import TABLE, Number, Words
from lspci_text import Block, Line, blocks, flags, functions

from vfiokit.host.source import open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.pci.capability import CapabilityList, capabilities
from vfiokit.pci.config import ConfigSpace

REPOSITORY = Path(__file__).resolve().parents[2]
DUMPS = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared")) / "data" / "lspci"

DIFFERENT = {
    ("Express", "LnkCtl2", "link_control_2.target_speed", 1, 0): (
        "Target Link Speed 0 is no speed's code (PCIe 6.0 §7.5.3.19): a port that only knows"
        " 2.5 GT/s may leave it 0. lspci writes 2.5GT/s, we keep what is there."
    ),
    ("Data Object Exchange", "DOESta", "status.error", 1, 0): (
        "DOE Error is bit 2 (PCIe 6.0 §7.9.24.4). lspci up to 3.9 looks at bits 0 and 1, so that"
        " an interrupt looks like an error to it."
    ),
    ("Integrity & Data Encryption", "SelectiveIDE#0 Ctl", "selective0_control.enable", 0, 1): (
        "Bit 0 of the control register is Selective IDE Stream Enable (PCIe 6.1 §7.9.26.5.2): it"
        " is set, and the stream is in the Secure state, as the version that wrote this also says."
    ),
    **{
        (f"HyperTransport: {kind}", f"Link Frequency Capability{link}", f"{ours}.{rate}", 0, 1): (
            "The register has 16 bits (HyperTransport 3.10 §7.5.9). lspci reads its lower byte,"
            " so that rates from 1.4 GHz on are never there."
        )
        for kind, link, ours, rates in (
            ("Slave or Primary", " 0", "frequencies_0", ("mhz_1400", "mhz_1600")),
            (
                "Host or Secondary",
                "",
                "frequencies",
                ("mhz_1400", "mhz_1600", "vendor_specific"),
            ),
        )
        for rate in rates
    },
}
"""What differs on purpose, as (title, label, place, theirs, ours), and why."""


class Record:
    """What of the table was met, and what was met that it does not know."""

    def __init__(self) -> None:
        self.used: set[tuple[str, str, str]] = set()
        self.unknown: list[tuple[str, str, str]] = []


class Compared(NamedTuple):
    """One value as lspci and as we have it."""

    title: str
    label: str
    place: str
    theirs: object
    ours: object


def missing(what: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def lspci() -> str:
    found = shutil.which("lspci")
    if found is None:
        missing("lspci is not installed; apt-get install pciutils")
    assert found is not None
    return found


def dumps() -> list[Path]:
    if not DUMPS.is_dir():
        missing(f"{DUMPS} is missing")
    return sorted(DUMPS.iterdir())


def decoded_by(lspci: str, dump: Path) -> str:
    # Without names, so that ids can be compared.
    command = [lspci, "-F", str(dump), "-n", "-vvv"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def title_of(block: Block) -> str | None:
    return max((title for title in TABLE if block.title.startswith(title)), key=len, default=None)


def step_into(value: Any, step: str) -> Any:
    if not isinstance(value, list):
        return value[step]
    key, _, wanted = step.partition("=")
    if not wanted:
        return value[int(step)]
    return next(element for element in value if str(element[key]) == wanted)


def ours(decoded: dict[str, Any], place: str) -> object:
    """The value at a place (:mod:`lspci_table`), which must exist."""
    for candidate in place.split("|"):
        value: Any = decoded if candidate.startswith("@") else decoded["registers"]
        try:
            for step in candidate.removeprefix("@").split("."):
                value = step_into(value, step)
        except KeyError:
            continue
        if isinstance(value, dict):
            value = value["value"]
        return str(value) if isinstance(value, list) else value
    raise AssertionError(f"{decoded['name']} has no {place}")


def words_of(
    words: Words, text: str, decoded: dict[str, Any], context: tuple[str, str], record: Record
) -> Iterator[Compared]:
    for number in words.numbers:
        yield from number_of(number, words.register, text, decoded, context, record)
    if words.without:
        text = re.sub(words.without, "", text)
    for name, value in flags(text):
        field = words.flags.get(name)
        if field is None:
            record.unknown.append((*context, name))
            continue
        opposite, field = field.startswith("!"), field.removeprefix("!")
        place = field if "." in field else f"{words.register}.{field}"
        record.used.add((*context, name))
        yield Compared(*context, place, int(value is not opposite), ours(decoded, place))


def number_of(
    number: Number,
    register: str,
    text: str,
    decoded: dict[str, Any],
    context: tuple[str, str],
    record: Record,
) -> Iterator[Compared]:
    match = re.search(number.pattern, text)
    if match is None:
        return
    record.used.add((*context, number.pattern))
    convert = number.convert
    if not callable(convert) and match[1] not in convert:
        record.unknown.append((*context, match[1]))
        return
    theirs = convert(match[1]) if callable(convert) else convert[match[1]]
    if theirs is not None:
        place = number.place.format(register=register)
        yield Compared(*context, place, theirs, ours(decoded, place))


def compare(text: str, dump: Path, record: Record) -> Iterator[Compared]:
    """Everything that ``text`` says about the capabilities in ``dump``."""
    found: dict[str, CapabilityList] = {
        function: capabilities(ConfigSpace(data))
        for function, data in functions(dump.read_text(errors="replace")).items()
    }
    for block in blocks(text):
        capability = next(
            (each for each in found[block.function] if each.offset == block.offset), None
        )
        if block.title == "Null" and block.extended and capability is None:
            continue  # a placeholder that only points on
        assert capability is not None, f"{block.function}: nothing at {block.offset:#x}"
        assert capability.version == block.version
        title = title_of(block)
        if title is None:
            record.unknown.append((block.title, "", ""))
            continue
        decoded = capability.decode()
        statements = (Line("", block.title.removeprefix(f"{title} ")), *block.lines)
        for label, said in statements:
            words = TABLE[title].get(label)
            if words is None:
                record.unknown.append((title, label, ""))
                continue
            yield from words_of(words, said, decoded, (title, label), record)


def server(path: Path) -> Path:
    """The packaged server as a dump at ``path``."""
    lines: list[str] = []
    for function in read_topology(open_tree("demo")):
        data = function.config.data
        lines += [f"{function.bdf} a function"]
        lines += [f"{at:02x}: {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)]
        lines += [""]
    path.write_text("\n".join(lines) + "\n")
    return path


def everything(lspci: str, record: Record, folder: Path) -> list[Compared]:
    """All that the installed lspci says of all dumps, and that a later one said of its own."""
    found: list[Compared] = []
    for dump in (server(folder / "server"), *dumps()):
        found += compare(decoded_by(lspci, dump), dump, record)
    later = DUMPS / "cap-ide"  # its text was written by a version that knows IDE
    found += compare(later.read_text(), later, record)
    return found


@pytest.fixture(scope="module")
def record() -> Record:
    return Record()


@pytest.fixture(scope="module")
def compared(
    lspci: str, record: Record, tmp_path_factory: pytest.TempPathFactory
) -> list[Compared]:
    return everything(lspci, record, tmp_path_factory.mktemp("lspci"))


@pytest.fixture(scope="module")
def the_version_known(lspci: str) -> None:
    version = subprocess.run([lspci, "--version"], capture_output=True, text=True, check=True)
    if " 3.9." not in version.stdout:
        pytest.skip(f"the table knows the words of 3.9, this is {version.stdout.strip()}")


def test_every_word_of_lspci_is_what_we_read(compared):
    wrong = [each for each in compared if each.theirs != each.ours and each not in DIFFERENT]
    assert not wrong, f"{len(wrong)} of {len(compared)} differ"


def test_thousands_of_words_were_compared(compared):
    assert len(compared) >= 3000  # by any version; 3.9 says six times as much
    assert len({(each.title, each.place) for each in compared}) >= 400


@pytest.mark.usefixtures("the_version_known")
def test_the_page_tells_how_many(compared):
    page = (REPOSITORY / "docs/capabilities.md").read_text(encoding="utf-8")
    places = {(each.title, each.place) for each in compared}
    assert f"{len(compared)} values with pciutils 3.9, {len(places)} different ones" in page


@pytest.mark.usefixtures("the_version_known", "compared")
def test_every_word_of_lspci_is_known(record):
    assert record.unknown == []


@pytest.mark.usefixtures("the_version_known")
def test_what_differs_on_purpose_still_differs(compared):
    assert {each for each in compared if each.theirs != each.ours} == set(DIFFERENT)


@pytest.mark.usefixtures("the_version_known", "compared")
def test_every_word_of_the_table_is_met(record):
    lines = {(title, label) for title, table in TABLE.items() for label in table}
    met = {(title, label) for title, label, _ in record.used}
    wordless = {key for key in lines if not TABLE[key[0]][key[1]].meanings()}
    assert lines - met - wordless == set()
    meanings = {each for title, label in lines for each in TABLE[title][label].meanings()}
    met_meanings = {
        meaning
        for title, label, word in record.used
        for meaning in TABLE[title][label].meanings()
        if meaning[0] == word
    }
    assert sorted(meanings - met_meanings) == []
