"""Every number, size and offset of ``vfiokit.abi`` against what a C compiler says.

``linux-X.Y.json`` are records of ``tools/abi_probe.py``. The oldest is what distributions ship,
the newest is what the modules follow.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vfiokit.abi import iommufd, pci_regs, vfio, vfio_spapr
from vfiokit.abi._layout import CStruct

HERE = Path(__file__).resolve().parent
PROBE = HERE.parent.parent / "tools" / "abi_probe.py"
RECORDS: dict[str, Any] = {
    path.stem.removeprefix("linux-"): json.loads(path.read_text())
    for path in HERE.glob("linux-*.json")
}
NEWEST = max(RECORDS, key=lambda version: [int(part) for part in version.split(".")])
MODULES: dict[str, tuple[ModuleType, ...]] = {
    "vfio": (vfio, vfio_spapr),
    "iommufd": (iommufd,),
    "pci_regs": (pci_regs,),
}
"""Header of the record → modules that describe it."""

PREFIXES = {"vfio": "VFIO_", "iommufd": "IOMMU", "pci_regs": "PCI_"}

NOT_IN_UAPI = {
    # include/linux/vfio_pci_core.h, which is not exported
    "VFIO_PCI_OFFSET_SHIFT",
    "VFIO_PCI_OFFSET_MASK",
}
CHANGED = {
    # older headers left out the last two bytes of the link registers
    "PCI_CAP_EXP_ENDPOINT_SIZEOF_V2": 50,
}
"""Constants that older headers give another value."""

GROWN = {"vfio_device_info"}
"""Structs that got fields at their end: older records may be shorter."""

PADDING = {("vfio_eeh_pe_op", "padding")}
"""Fields that C leaves to alignment."""

LEFT_OUT = {
    "vfio": {
        # channel subsystem and crypto adapters of s390
        "VFIO_AP_CFG_CHG_IRQ_INDEX",
        "VFIO_AP_NUM_IRQS",
        "VFIO_AP_REQ_IRQ_INDEX",
        "VFIO_CCW_CONFIG_REGION_INDEX",
        "VFIO_CCW_CRW_IRQ_INDEX",
        "VFIO_CCW_IO_IRQ_INDEX",
        "VFIO_CCW_NUM_IRQS",
        "VFIO_CCW_NUM_REGIONS",
        "VFIO_CCW_REQ_IRQ_INDEX",
        "VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD",
        "VFIO_REGION_SUBTYPE_CCW_CRW",
        "VFIO_REGION_SUBTYPE_CCW_SCHIB",
        # mediated devices of other buses
        "VFIO_DEVICE_API_AMBA_STRING",
        "VFIO_DEVICE_API_AP_STRING",
        "VFIO_DEVICE_API_CCW_STRING",
        "VFIO_DEVICE_API_PLATFORM_STRING",
        # display planes of mediated graphics devices
        "VFIO_DEVICE_GFX_LINK_STATE_DOWN",
        "VFIO_DEVICE_GFX_LINK_STATE_UP",
        "VFIO_GFX_PLANE_TYPE_DMABUF",
        "VFIO_GFX_PLANE_TYPE_PROBE",
        "VFIO_GFX_PLANE_TYPE_REGION",
        "vfio_device_gfx_plane_info",
        "vfio_region_gfx_edid",
        # migration version 1, gone from the kernel
        "VFIO_DEVICE_STATE_MASK",
        "VFIO_DEVICE_STATE_V1_RESUMING",
        "VFIO_DEVICE_STATE_V1_RUNNING",
        "VFIO_DEVICE_STATE_V1_SAVING",
        "VFIO_DEVICE_STATE_V1_STOP",
        "VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED",
        "vfio_device_migration_info",
        # NVLink2 and nested type1, gone from the kernel
        "VFIO_TYPE1_NESTING_IOMMU",
        "vfio_region_info_cap_nvlink2_lnkspd",
        "vfio_region_info_cap_nvlink2_ssatgt",
        # a count of states, not part of the ABI
        "VFIO_DEVICE_STATE_NR",
    },
    "iommufd": {
        # the low byte of each request, which is defined whole
        "IOMMUFD_CMD_DESTROY",
        "IOMMUFD_CMD_FAULT_QUEUE_ALLOC",
        "IOMMUFD_CMD_GET_HW_INFO",
        "IOMMUFD_CMD_HWPT_ALLOC",
        "IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP",
        "IOMMUFD_CMD_HWPT_INVALIDATE",
        "IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING",
        "IOMMUFD_CMD_HW_QUEUE_ALLOC",
        "IOMMUFD_CMD_IOAS_ALLOC",
        "IOMMUFD_CMD_IOAS_ALLOW_IOVAS",
        "IOMMUFD_CMD_IOAS_CHANGE_PROCESS",
        "IOMMUFD_CMD_IOAS_COPY",
        "IOMMUFD_CMD_IOAS_IOVA_RANGES",
        "IOMMUFD_CMD_IOAS_MAP",
        "IOMMUFD_CMD_IOAS_MAP_FILE",
        "IOMMUFD_CMD_IOAS_UNMAP",
        "IOMMUFD_CMD_OPTION",
        "IOMMUFD_CMD_VDEVICE_ALLOC",
        "IOMMUFD_CMD_VEVENTQ_ALLOC",
        "IOMMUFD_CMD_VFIO_IOAS",
        "IOMMUFD_CMD_VIOMMU_ALLOC",
    },
}
"""Names of each header that its modules do without."""


def constants(header: str) -> dict[str, int | str]:
    return {
        key: value
        for module in MODULES[header]
        for key, value in vars(module).items()
        if key.startswith(PREFIXES[header])
    }


def structs(header: str) -> dict[str, type[CStruct]]:
    return {
        key: value
        for module in MODULES[header]
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, CStruct) and value is not CStruct
    }


def recorded(header: str) -> set[str]:
    """Every name that some version of the header has."""
    records = [record[header] for record in RECORDS.values() if header in record]
    return {name for record in records for name in (*record["constants"], *record["structs"])}


def same_number(ours: int | str, theirs: int | str) -> bool:
    """C's value may be the signed reading of the same bits, or a mask of ``unsigned long``."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    if ours == theirs:
        return True
    return theirs < 0 and ours == theirs & 0xFFFFFFFF


def c_path(struct: str, field: str, paths: dict[str, list[Any]]) -> str | None:
    """The C path of one of our fields.

    That has the same name, or is ``__name``, ``name[0]`` for ``name0``, or in a nested struct.
    """
    fits = [path for path in paths if path.lstrip("_") == field]
    fits = fits or [path for path in paths if re.sub(r"[\[\]]", "", path.lstrip("_")) == field]
    fits = fits or [path for path in paths if path.replace(".", "_") == field]
    fits = fits or [path for path in paths if path.rsplit(".", 1)[-1] == field]
    assert len(fits) <= 1, f"struct {struct}: {field} could be any of {fits}"
    return fits[0] if fits else None


def wrong(version: str, record: dict[str, Any], *, newest: bool) -> list[str]:
    """Everything in which our modules contradict one record."""
    found: list[str] = []
    for name in MODULES.keys() & record.keys():
        theirs = record[name]["constants"]
        for key, value in constants(name).items():
            if key not in theirs or same_number(value, theirs[key]):
                continue
            if newest or theirs[key] != CHANGED.get(key):
                found.append(f"{key}: {value} here, {theirs[key]} in Linux {version}")
        for key, struct in structs(name).items():
            if key in record[name]["structs"]:
                found += wrong_struct(key, struct, record[name]["structs"][key], newest=newest)
    return found


def wrong_struct(
    name: str, struct: type[CStruct], theirs: dict[str, Any], *, newest: bool
) -> list[str]:
    found: list[str] = []
    grown = not newest and name in GROWN
    if theirs["size"] != struct.SIZE and not (grown and theirs["size"] < struct.SIZE):
        found.append(f"sizeof {name}: {struct.SIZE} here, {theirs['size']}")
    covered = set()
    for field, offset in struct.OFFSETS.items():
        if (name, field) in PADDING:
            continue
        path = c_path(name, field, theirs["fields"])
        if path is None:
            if offset < theirs["size"] and newest:
                found.append(f"{name}.{field} is no field of the header's struct")
            continue
        covered.add(path)
        kind, where = theirs["fields"][path]
        if where != offset:
            found.append(f"offsetof {name}.{field}: {offset} here, {where}")
        if kind != struct.__annotations__[field]:
            found.append(f"{name}.{field} is {struct.__annotations__[field]} here, {kind}")
    for path, (kind, where) in theirs["fields"].items():
        aliased = any(theirs["fields"][other][1] == where for other in covered)
        if path not in covered and not kind.endswith("[]") and not aliased:
            found.append(f"{name}.{path} is missing")
    return found


@pytest.mark.parametrize("version", sorted(RECORDS))
def test_every_definition_agrees_with_the_compiler(version):
    assert wrong(version, RECORDS[version], newest=version == NEWEST) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_name_is_known_to_some_header(name):
    ours = set(constants(name)) | set(structs(name))
    assert ours - recorded(name) - NOT_IN_UAPI == set()


def test_newest_record_has_every_header():
    assert RECORDS[NEWEST].keys() - {"linux"} == MODULES.keys()


@pytest.mark.parametrize("header", sorted(LEFT_OUT))
def test_every_name_of_the_header_is_defined_or_left_out_on_purpose(header):
    theirs = recorded(header)
    ours = set(constants(header)) | set(structs(header))
    assert theirs - ours - LEFT_OUT[header] == set()
    assert theirs >= LEFT_OUT[header], "listed as left out, but in no header"
    assert not ours & LEFT_OUT[header], "listed as left out, but defined"


@pytest.mark.parametrize(
    ("header", "name"), [(header, name) for header in MODULES for name in sorted(structs(header))]
)
def test_struct_survives_a_round_trip(header, name):
    struct = structs(header)[name]
    values = {
        field: -1 if struct.__annotations__[field] == "s32" else index + 1
        for index, field in enumerate(struct.OFFSETS)
    }
    made = struct(**values)
    assert struct.unpack_from(made.pack()) == made
    assert len(made.pack()) == struct.SIZE


def test_unknown_field_is_refused():
    with pytest.raises(TypeError, match="no field nonsense"):
        vfio.vfio_region_info(nonsense=1)  # type: ignore[call-arg]


def test_every_iommufd_request_has_its_command_struct():
    numbers = {
        value
        for name, value in constants("iommufd").items()
        if name.startswith("IOMMU_") and int(value) >> 8 == iommufd.IOMMUFD_TYPE
    }
    assert iommufd.COMMANDS.keys() == numbers
    low = [request & 0xFF for request in iommufd.COMMANDS]
    theirs = RECORDS[NEWEST]["iommufd"]["constants"]
    assert set(low) == {n for name, n in theirs.items() if name.startswith("IOMMUFD_CMD_")}
    commands = {struct for struct, _ in iommufd.COMMANDS.values()}
    assert commands == {s for s in structs("iommufd").values() if s.OFFSETS.get("size") == 0}


@pytest.mark.parametrize("request_number", sorted(iommufd.COMMANDS), ids=hex)
def test_minimum_size_of_a_command_ends_with_a_field(request_number):
    struct, minimum = iommufd.COMMANDS[request_number]
    assert minimum in {*struct.OFFSETS.values(), struct.SIZE}
    named = re.search(r"kernels accept ``size`` from (\d+)", struct.__doc__ or "")
    assert minimum == (int(named[1]) if named else struct.SIZE)


@pytest.fixture
def abi_probe():
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to ask")
    spec = importlib.util.spec_from_file_location("abi_probe", PROBE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_probe_of_the_installed_headers_agrees(abi_probe):
    try:
        fresh = abi_probe.probe(["gcc"])
    except abi_probe.ProbeError as error:
        pytest.skip(f"gcc does not find the kernel's headers: {error}")
    version = fresh["linux"]
    if version in RECORDS:
        assert fresh == RECORDS[version]
    assert wrong(version, fresh, newest=False) == []


@pytest.fixture
def header(abi_probe, tmp_path, monkeypatch):
    """Write a header that the probe finds, as its module ``made_up``."""

    def write(text: str) -> list[str]:
        (tmp_path / "made_up.h").write_text(text)
        monkeypatch.setattr(
            abi_probe,
            "HEADERS",
            {
                "made_up": ("made_up.h", "made_", "MADE_"),
                "missing": ("linux/no_such_header.h", "no_", "NO_"),
            },
        )
        return ["gcc", f"-I{tmp_path}"]

    return write


def test_probe_leaves_out_a_header_that_is_not_there(abi_probe, header):
    record = abi_probe.probe(header("#define MADE_UP 7\n"))
    assert record.keys() == {"linux", "made_up"}
    assert record["made_up"]["constants"] == {"MADE_UP": 7}


def test_probe_without_any_header_says_so(abi_probe, monkeypatch):
    monkeypatch.setattr(abi_probe, "HEADERS", {"missing": ("linux/no_such_header.h", "", "NO_")})
    with pytest.raises(abi_probe.ProbeError, match="none of the kernel's headers"):
        abi_probe.probe(["gcc"])


def test_probe_spells_out_arrays_of_fixed_length_only(abi_probe, header):
    source = """#include <linux/types.h>
    struct made_pair { __u8 one; __aligned_le64 two[2]; };
    struct made_up { __u32 count; struct made_pair pairs[2]; __u16 rest[]; };
    """
    structs = abi_probe.probe(header(source))["made_up"]["structs"]
    assert structs["made_up"]["fields"] == {
        "count": ["u32", 0],
        "pairs[0].one": ["u8", 8],
        "pairs[0].two[0]": ["u64", 16],
        "pairs[0].two[1]": ["u64", 24],
        "pairs[1].one": ["u8", 32],
        "pairs[1].two[0]": ["u64", 40],
        "pairs[1].two[1]": ["u64", 48],
        "rest": ["u16[]", 56],
    }
