"""The parts of a guest that need no guest: archive, first process, kernels, modules, batches."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.lab import assemble, guest, interpreter
from vfiokit.lab.batch import Scenario
from vfiokit.lab.cpio import Archive
from vfiokit.lab.failure import KernelLacksError, KernelMissingError, QemuMissingError
from vfiokit.lab.guest_command import guest_environment, resolve_command
from vfiokit.lab.guest_device import guest_devices
from vfiokit.lab.guest_system import Boot, Command, fetch_command
from vfiokit.lab.kernel import Kernel, Need, embedded_config, parse_config
from vfiokit.lab.module import ModuleFolder, parameters_of
from vfiokit.lab.program import Call, Program, Scratch, Streams
from vfiokit.lab.qemu import Qemu
from vfiokit.pci.address import Bdf

EXIT_GROUP = 231


# -- archives -------------------------------------------------------------------------------------


def unpack(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of newc: mode and content by name."""
    found = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = (at + 110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        assert name not in found
        found[name] = (mode, data[at : at + size])
        at = (at + size + 3) & ~3


NAMES = st.from_regex(r"([A-C]{1,2}/){0,2}[a-z]{1,9}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary()))
def test_an_archive_holds_what_was_put_in(files: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.file(name, data, 0o640)
    found = unpack(archive.to_bytes())
    plain = {name: data for name, (mode, data) in found.items() if mode == 0o100640}
    assert plain == files
    for name in found:
        parent = name.rpartition("/")[0]
        assert not parent or found[parent][0] == 0o040755


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio")
def test_cpio_lists_the_archive(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x" * 5)
    os.utime(tmp_path / "source", (1, 86400 * 365))
    archive = Archive()
    archive.character_device("dev/console", 5, 1)
    archive.link("init", "bin/init")
    archive.copy(tmp_path / "source", "/etc/copy")
    listed = subprocess.run(
        ["cpio", "-tv"], input=archive.to_bytes(), capture_output=True, check=True
    ).stdout.decode()
    assert "5,   1" in listed
    assert "init -> bin/init" in listed
    assert "Jan  1  1971 etc/copy" in listed


# -- the first process ----------------------------------------------------------------------------


def execute(program: Program, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a program on this host: only what needs no privilege, and never to its end."""
    path = folder / "init"
    path.write_bytes(program.to_elf())
    path.chmod(0o755)
    return subprocess.run([path], capture_output=True, check=False, timeout=30)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its machine code is for x86-64")
class TestFirstProcess:
    def test_it_runs_commands_one_after_the_other(self, tmp_path: Path) -> None:
        program = Program()
        out = str(tmp_path / "out")
        streams = Streams("/dev/null", out, out)
        status = str(tmp_path / "status")
        program.run(["/bin/sh", "-c", "echo $A; pwd; exit 7"], {"A": "b"}, folder="/usr",
                    streams=streams, status=status)  # fmt: skip
        program.run(["/bin/sh", "-c", "sleep 0.3 & kill -9 $$"], {}, streams=streams,
                    status=status + "2")  # fmt: skip
        program.call("exit", EXIT_GROUP, 5)
        assert execute(program, tmp_path).returncode == 5
        assert (tmp_path / "out").read_text() == "b\n/usr\n"
        statuses = [
            os.waitstatus_to_exitcode(int.from_bytes((tmp_path / name).read_bytes(), "little"))
            for name in ("status", "status2")
        ]
        assert statuses == [7, -9]

    def test_a_step_that_fails_is_named(self, tmp_path: Path) -> None:
        program = Program()
        out = str(tmp_path / "out")
        program.make_folder("/proc/cannot-be")  # may fail
        program.run(["/no/such/program"], {}, streams=Streams("/dev/null", out, out))
        program.call("exit", EXIT_GROUP, 0)
        assert execute(program, tmp_path).returncode == 0
        said = (tmp_path / "out").read_bytes()
        assert program.explain_failure(said) == (
            "execute /no/such/program: No such file or directory"
        )
        assert program.explain_failure(b"nothing of the kind") == ""

    def test_scratch_and_arrays_are_placed_once(self, tmp_path: Path) -> None:
        program = Program()
        place = Scratch("x", 8)
        program.call("write", Call.WRITE, 1, b"text", 4)
        program.call("write", Call.WRITE, 1, place, 2)
        program.call("exit", EXIT_GROUP, 0)
        assert execute(program, tmp_path).stdout == b"text\0\0"

    @pytest.mark.skipif(
        not all(shutil.which(tool) for tool in ("as", "ld", "objcopy")), reason="no binutils"
    )
    def test_the_machine_code_is_what_the_source_assembles_to(self) -> None:
        assert assemble.assemble() == interpreter.CODE
        assert assemble.render(interpreter.CODE) == assemble.OUTPUT.read_text(encoding="utf-8")


def test_the_initial_file_system_holds_modules_and_the_first_process(tmp_path: Path) -> None:
    folder = modules(tmp_path)
    boot = Boot(
        Command(["/bin/true"], "/", {}),
        folder.resolve(["vfio-pci"]),
        ("quiet", "vfio_pci.disable_denylist=1"),
    )
    found = unpack(boot.build().to_bytes())
    assert found["init"][1].startswith(b"\x7fELF")
    assert found["dev/console"][0] == 0o020600
    assert [name for name in found if name.startswith("modules/")] == [
        "modules/vfio",
        "modules/vfio_pci",
    ]
    assert b"disable_denylist=1\0" in found["init"][1]


def test_fetched_files_keep_their_folders(tmp_path: Path) -> None:
    for name in ("a b.txt", "sub/deep/c.xml", "d.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    out = tmp_path / "out"
    out.mkdir()
    command = list(fetch_command(["*.txt", "sub/*/*.xml", "missing", str(tmp_path / "d.log")]))
    command[4] = str(out)
    subprocess.run(command, cwd=tmp_path, check=True)
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == ["a b.txt", "d.log", "sub/deep/c.xml"]


# -- kernels and modules --------------------------------------------------------------------------


def modules(tmp_path: Path) -> ModuleFolder:
    folder = tmp_path / "modules"
    (folder / "kernel").mkdir(parents=True)
    (folder / "kernel/vfio.ko.xz").write_bytes(lzma.compress(b"ELF vfio \0depends=\0"))
    (folder / "kernel/vfio-pci.ko.gz").write_bytes(gzip.compress(b"ELF \0depends=vfio\0name=x\0"))
    return ModuleFolder(folder)


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    folder = modules(tmp_path)
    found = folder.resolve(["vfio_pci", "absent", "vfio"])
    assert [module.name for module in found] == ["vfio", "vfio_pci"]
    assert found[0].content().startswith(b"ELF vfio")
    assert "vfio-pci" in folder
    assert "absent" not in folder


def test_an_index_of_modules_is_used_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("a/one.ko: a/two.ko a/three.ko\na/two.ko: a/three.ko\n"
                                          "a/three.ko:\n")  # fmt: skip
    found = ModuleFolder(tmp_path).resolve(["one"])
    assert [module.name for module in found] == ["three", "two", "one"]
    assert not ModuleFolder(tmp_path / "none")


def test_parameters_of_the_command_line_reach_modules() -> None:
    words = ("quiet", "vfio-pci.ids=1:2", "vfio_pci.nointxmask=1", "vfio.x=1", "a=vfio_pci.b")
    assert parameters_of("vfio_pci", words) == "ids=1:2 nointxmask=1"


def image(release: str = "6.1.0-test", config: str = "") -> bytes:
    """As much of a bzImage as is looked at."""
    payload = gzip.compress(b"kernel IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED")
    head = bytearray(0x400)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    text = f"{release} (somebody) #1\0".encode()
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head) + payload


def test_a_kernel_tells_its_release_and_configuration(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz-test"
    path.write_bytes(image(config="CONFIG_VFIO=y\n# CONFIG_X is not set\nCONFIG_M=m\n"))
    kernel = Kernel(path)
    assert kernel.release == "6.1.0-test"
    assert (kernel.option("VFIO"), kernel.option("X"), kernel.option("M")) == ("y", "", "m")
    (tmp_path / "config-test").write_text('CONFIG_VFIO=m\nCONFIG_NAME="text"\n')
    assert Kernel(path).config == {"VFIO": "m", "NAME": "text"}
    assert embedded_config(b"not a kernel") == ""
    assert parse_config("") == {}


def test_what_a_kernel_lacks_is_named_before_boot(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz-test"
    path.write_bytes(image(config="CONFIG_VFIO=y\nCONFIG_VFIO_PCI=m\nCONFIG_OTHER=m\n"))
    folder = modules(tmp_path)
    kernel = Kernel(path, folder.path)
    kernel.require([Need("VFIO", "why"), Need("VFIO_PCI", "why", "vfio_pci")])
    with pytest.raises(KernelLacksError, match=r"without CONFIG_IOMMUFD \(why\)") as caught:
        kernel.require([Need("IOMMUFD", "why"), Need("VFIO", "why")])
    assert caught.value.options == ("IOMMUFD",)
    with pytest.raises(KernelLacksError, match=r"as modules, and .* lacks them") as caught:
        kernel.require([Need("OTHER", "why", "other")])
    assert "--modules" in caught.value.hint
    silent = tmp_path / "silent"
    silent.write_bytes(b"no configuration")
    Kernel(silent).require([Need("IOMMUFD", "why")])  # it may have everything


def test_kernels_and_qemu_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KernelMissingError, match="No such file"):
        Kernel.find(str(tmp_path / "none"))
    with pytest.raises(KernelMissingError, match="no folder of modules"):
        Kernel.find("", str(tmp_path / "none"))
    with pytest.raises(QemuMissingError, match="neither an executable"):
        Qemu.find(str(tmp_path / "none"))
    with pytest.raises(QemuMissingError, match="with its dynamic loader"):
        Qemu.find(str(tmp_path))
    monkeypatch.delenv("VFIOKIT_LAB_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuMissingError, match="in PATH") as caught:
        Qemu.find()
    assert "apt install" in caught.value.hint


def test_an_unpacked_qemu_runs_through_its_own_loader(tmp_path: Path) -> None:
    for name in ("usr/bin/qemu-system-x86_64", "usr/lib64/ld-linux-x86-64.so.2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Qemu.find(str(tmp_path))
    assert found.command[0].endswith("ld-linux-x86-64.so.2")
    assert f"{tmp_path}/usr/bin/qemu-system-x86_64" in found.command
    assert found.environment["QEMU_MODULE_DIR"].startswith(str(tmp_path))


# -- commands and batches -------------------------------------------------------------------------


def test_commands_are_found_as_the_guest_would(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert resolve_command(["./tool", "x"], str(tmp_path), "/bin") == (str(program), "x")
    assert resolve_command(["tool"], "/", str(tmp_path)) == (str(program),)
    for argv, folder in ((["tool"], "/"), (["./none"], "/"), ([], "/"), (["sh"], "/sys")):
        with pytest.raises(UsageError):
            resolve_command(argv, folder, "/usr/bin:/bin")


def test_secrets_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    passed = guest_environment()
    assert passed["LC_ALL"] == "C.UTF-8"
    assert "MY_TOKEN" not in passed


def test_devices_are_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIOKIT_LAB_DEVICES", "rp0=0000:00:02.0 a=0000:01:00.0")
    assert guest_devices() == {"rp0": Bdf(0, 0, 2, 0), "a": Bdf(0, 1, 0, 0)}
    monkeypatch.delenv("VFIOKIT_LAB_DEVICES")
    with pytest.raises(UsageError, match="no guest"):
        guest_devices()


def test_a_batch_runs_each_call_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "import os\ncount = 0\n"
        "def add(n):\n    global count\n    count += n\n    print('adding')\n    return count\n"
        "def fail():\n    raise KeyError('x')\n"
        "def vanish():\n    os._exit(3)\n"
        "def leave():\n    os._exit(0)\n"
    )
    names = ("add", "add", "fail", "vanish", "nothing", "leave")
    calls = [
        {
            **Scenario("elsewhere:x").call(),
            "file": str(tmp_path / "elsewhere.py"),
            "function": name,
            "arguments": [2] if name == "add" else [],
        }
        for name in names
    ]
    (tmp_path / "batch.json").write_text(json.dumps(calls))
    subprocess.run([sys.executable, "-P", guest.__file__, str(tmp_path)], check=True, cwd="/")
    results = [
        json.loads(path.read_text()) if path.exists() else None
        for path in (tmp_path / f"result-{number}.json" for number in range(len(names)))
    ]
    assert [result and result.get("value") for result in results] == [2, 2, None, None, None, None]
    assert results[2]["error"] == "KeyError: 'x'"
    assert "elsewhere.py" in results[2]["traceback"]
    assert results[3]["error"] == "ended with status 3 and no result"
    assert "AttributeError" in results[4]["error"]
    assert results[5]["error"] == "ended with status 0 and no result"
    assert (tmp_path / "output-0").read_text() == "adding\n"
