"""Every number, size and offset of ``vfiokit.abi.kvm`` against what a C compiler says.

``kvm-6.1.json`` is what gcc said on Linux 6.1; where there is a compiler it is asked again.
Refresh with ``python tests/abi/test_kvm.py``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from vfiokit.abi import kvm
from vfiokit.abi._layout import CStruct

RECORD = Path(__file__).with_name("kvm-6.1.json")
IN_C = {"kvm_irq_routing_msi_entry": "kvm_irq_routing_entry"}
"""Ours → the C struct, where it has another name."""
FIELDS = {
    ("kvm_dtable", "padding0"): "padding[0]",
    ("kvm_dtable", "padding1"): "padding[1]",
    ("kvm_dtable", "padding2"): "padding[2]",
    **{("kvm_irq_routing_msi_entry", name): f"u.msi.{name}"
       for name in ("address_lo", "address_hi", "data", "devid")},
}  # fmt: skip
PADDING = {"kvm_ioeventfd", "kvm_irqfd", "kvm_msi", "kvm_irq_routing_msi_entry"}


def constants() -> dict[str, int]:
    return {
        name: value for name, value in vars(kvm).items()
        if name.startswith("KVM_") and isinstance(value, int)
        and not name.startswith(("KVM_RUN_", "KVM_SREGS_"))
    }  # fmt: skip


def structs() -> dict[str, type[CStruct]]:
    return {
        name: value for name, value in vars(kvm).items()
        if isinstance(value, type) and issubclass(value, CStruct) and value is not CStruct
    }  # fmt: skip


def expressions() -> dict[str, tuple[str, int]]:
    """What to ask the compiler → C expression and our answer."""
    asked = {name: (name, value) for name, value in constants().items()}
    for name, struct in structs().items():
        c_name = f"struct {IN_C.get(name, name)}"
        asked[f"sizeof {name}"] = (f"sizeof({c_name})", struct.SIZE)
        for field, offset in struct.OFFSETS.items():
            if name in PADDING and field.startswith(("pad", "rest")):
                continue
            path = FIELDS.get((name, field), field)
            asked[f"{name}.{field}"] = (f"offsetof({c_name}, {path})", offset)
    for name, offset in vars(kvm).items():
        if name.startswith("KVM_RUN_"):
            member, _, field = name.removeprefix("KVM_RUN_").partition("_")
            whole = member in ("io", "mmio", "hypercall", "internal")
            path = f"{member}.{field}" if whole else name.removeprefix("KVM_RUN_")
            path = path.replace("fail_entry_", "fail_entry.")
            asked[name] = (f"offsetof(struct kvm_run, {path})", offset)
    asked["sizeof kvm_sregs"] = ("sizeof(struct kvm_sregs)", kvm.KVM_SREGS_SIZE)
    offset = 0
    for names, size in (
        (kvm.KVM_SREGS_SEGMENTS, kvm.kvm_segment.SIZE),
        (kvm.KVM_SREGS_TABLES, kvm.kvm_dtable.SIZE),
        (kvm.KVM_SREGS_CONTROL, 8),
    ):
        for name in names:
            asked[f"kvm_sregs.{name}"] = (f"offsetof(struct kvm_sregs, {name})", offset)
            offset += size
    return asked


def ask() -> dict[str, int]:
    """The compiler's answers."""
    lines = [
        f'printf("%s\\t%lld\\n", "{name}", (long long)({expression}));'
        for name, (expression, _ours) in expressions().items()
    ]
    source = (
        "#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\n"
        "#ifndef KVM_RUN\n#error\n#endif\nint main(void) {\n" + "\n".join(lines) + "\n}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        unit, program = Path(folder, "probe.c"), Path(folder, "probe")
        unit.write_text(source)
        subprocess.run(["gcc", "-o", program, unit], check=True)
        out = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("\t") for line in out.splitlines())}


def ours() -> dict[str, int]:
    return {name: value for name, (_expression, value) in expressions().items()}


def test_every_definition_agrees_with_the_record() -> None:
    assert ours() == json.loads(RECORD.read_text())


def test_every_definition_agrees_with_the_compiler_here() -> None:
    if shutil.which("gcc") is None or not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no gcc, or no kernel headers, to ask")
    assert ours() == ask()


@pytest.mark.parametrize("name", sorted(structs()))
def test_struct_survives_a_round_trip(name: str) -> None:
    struct = structs()[name]
    made = struct(**{field: index + 1 for index, field in enumerate(struct.OFFSETS)})
    assert struct.unpack_from(made.pack()) == made


if __name__ == "__main__":
    RECORD.write_text(json.dumps(ask(), indent=1) + "\n")
