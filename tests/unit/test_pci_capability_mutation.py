"""Real configuration spaces, damaged: every description still answers, and says what is wrong."""

from __future__ import annotations

import json
import os
import random

import pytest
from pci_dumps import dumps

from vfiokit.pci.capability import Capability, CapabilityList, capabilities
from vfiokit.pci.config import ConfigSpace

THOROUGH = bool(os.environ.get("CI") or os.environ.get("VFIOKIT_THOROUGH"))
PARTS = 4
MUTATIONS = (20_000 if THOROUGH else 500) // PARTS

CODES = {
    "loop",
    "bad-pointer",
    "truncated",
    "no-function",
    "bad-length",
    "past-end",
    "overlap",
}


@pytest.fixture(scope="module")
def real() -> list[bytes]:
    return sorted({dump.config.data for dump in dumps() if len(capabilities(dump.config))})


def check(data: bytes) -> CapabilityList:
    """Decode everything; whatever the bytes are, there is an answer."""
    found = capabilities(ConfigSpace(data))
    for capability in found:
        decoded = capability.decode()
        assert json.loads(json.dumps(decoded)) == decoded
        assert capability.size >= 2
        for register in capability.registers():
            assert capability.offset + register.offset + register.width <= len(data)
    for finding in found.examine():
        assert finding.code in CODES
        assert finding.text
        assert 0 <= finding.offset < 4096
    return found


def mutated(chance: random.Random, data: bytes) -> bytes:
    """``data`` with some bytes changed, mostly where capabilities and their lengths are."""
    changed = bytearray(data)
    places = [capability.offset for capability in capabilities(ConfigSpace(data))]
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        if chance.random() < 0.7:
            place = chance.choice(places) + chance.randrange(12)
        else:
            place = chance.randrange(len(data))
        if place < len(data):
            changed[place] = chance.choice((0x00, 0xFF, chance.randrange(256)))
    if chance.random() < 0.1:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_damage_raises(real, part):
    chance = random.Random(part)
    wrong = 0
    for _ in range(MUTATIONS):
        found = check(mutated(chance, chance.choice(real)))
        wrong += bool(found.findings)
    assert wrong > MUTATIONS // 100


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 255, 256, 257, 300, 4095])
def test_no_cut_raises(real, length):
    for data in real:
        check(data[:length])


def swept(capability: Capability) -> list[bytes]:
    """The space of ``capability`` with every bit of its first dwords flipped, one at a time."""
    data = capability.config.data
    results: list[bytes] = []
    for bit in range(32, 8 * 16):
        changed = bytearray(data)
        place = capability.offset + bit // 8
        if place < len(data):
            changed[place] ^= 1 << bit % 8
            results.append(bytes(changed))
    return results


def test_no_flipped_bit_raises(real):
    seen: set[str] = set()
    for data in real:
        for capability in capabilities(ConfigSpace(data)):
            if capability.name not in seen:
                seen.add(capability.name)
                for changed in swept(capability):
                    check(changed)
    assert len(seen) >= 50


def first_standard(data: bytes) -> Capability | None:
    return next((each for each in capabilities(ConfigSpace(data)) if not each.extended), None)


@pytest.mark.parametrize(
    ("pointer", "code"), [(0x04, "bad-pointer"), (None, "loop"), (0xFC, "bad-pointer")]
)
def test_a_damaged_pointer_is_a_finding(real, pointer, code):
    checked = 0
    for data in real:
        capability = first_standard(data)
        if capability is None or data[0x0E] & 0x7F == 2:
            continue
        changed = bytearray(data)
        changed[capability.offset + 1] = capability.offset if pointer is None else pointer
        if pointer == 0xFC:
            changed[0xFC] = 0xFF
        assert code in [finding.code for finding in check(bytes(changed)).findings]
        checked += 1
    assert checked > 50


def test_a_vendor_length_too_small_is_a_finding(real):
    checked = 0
    for data in real:
        for capability in capabilities(ConfigSpace(data)):
            if capability.name in ("vendor-specific", "dvsec", "cxl-device"):
                changed = bytearray(data)
                changed[capability.offset + 6] &= 0x0F  # length 0
                changed[capability.offset + 7] = 0
                codes = [finding.code for finding in check(bytes(changed)).examine()]
                assert "bad-length" in codes
                checked += 1
    assert checked >= 10


def test_a_vendor_length_too_large_is_a_finding(real):
    checked = 0
    for data in real:
        found = capabilities(ConfigSpace(data))
        for capability in found:
            if capability.name == "vendor-specific" and len(data) == 4096:
                changed = bytearray(data)
                changed[capability.offset + 6] |= 0xF0
                changed[capability.offset + 7] = 0xFF
                codes = {finding.code for finding in check(bytes(changed)).examine()}
                assert codes & {"past-end", "overlap"}
                checked += 1
    assert checked >= 10
