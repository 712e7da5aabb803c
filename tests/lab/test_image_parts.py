"""The parts of an image and of the way back that need no guest."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_guest_parts import unpack

from vfiokit.errors import UsageError
from vfiokit.lab import elf, guest_agent
from vfiokit.lab.cpio import Archive
from vfiokit.lab.equipment import choose_root
from vfiokit.lab.failure import LabError
from vfiokit.lab.guest_agent import COMPRESSED, HEADER, MAGIC, PIECE, Mirror, frame
from vfiokit.lab.image import Image, files_below, requirements
from vfiokit.lab.kernel import Kernel
from vfiokit.lab.transfer import Piece, Receiver, take_piece

# -- libraries ------------------------------------------------------------------------------------

PROGRAMS = [path for name in ("sh", "bash", "ls", "ssh", "perl") if (path := shutil.which(name))]


def loaded(program: str) -> set[str]:
    """What the dynamic loader itself says that it would load."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = [word for line in said.splitlines() for word in line.split() if word.startswith("/")]
    return {os.path.realpath(word) for word in words}


@pytest.mark.skipif(not shutil.which("ldd"), reason="no ldd")
@pytest.mark.parametrize("program", [*PROGRAMS, sys.executable])
def test_libraries_are_those_that_the_loader_would_load(program: str) -> None:
    found: set[str] = set()
    waiting, search = [program], list[str]()
    while waiting:
        path = waiting.pop()
        for library in elf.libraries(path, Path(path).read_bytes(), search):
            if os.path.realpath(library) not in found:
                found.add(os.path.realpath(library))
                waiting.append(library)
    assert found == loaded(program)


@given(st.binary(max_size=300), st.integers(0, 63), st.integers(0, 255))
def test_files_that_are_no_programs_need_nothing(data: bytes, place: int, value: int) -> None:
    assert elf.read_linkage(data) == elf.NOTHING or data.startswith(b"\x7fELF")
    program = bytearray(Path("/bin/sh").read_bytes()[:4096])
    program[place] = value
    elf.read_linkage(bytes(program))  # broken headers are no error


# -- images ---------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project folder with a bit of everything."""
    root = tmp_path.resolve()
    (root / "real/deep").mkdir(parents=True)
    (root / "real/deep/data").write_text("data")
    (root / "link").symlink_to("real")
    (root / "real/again").symlink_to(root / "link/deep")
    (root / "script.sh").write_text("#!/usr/bin/env sh\necho\n")
    for name in (".git", "env"):
        (root / name).mkdir()
        (root / name / "pyvenv.cfg").write_text("")
    return root


def held(archive: Archive) -> dict[str, bytes]:
    """Content by absolute path; of links what they say."""
    return {f"/{name}": data for name, (mode, data) in unpack(archive.to_bytes()).items()
            if mode & 0o170000 != 0o040000}  # fmt: skip


def test_links_on_the_way_to_a_file_come_along(tree: Path) -> None:
    archive = Archive()
    Image(archive).add(f"{tree}/real/again/data", "folder")
    assert held(archive) == {
        f"{tree}/real/again": f"{tree}/link/deep".encode(),
        f"{tree}/link": b"real",
        f"{tree}/real/deep/data": b"data",
    }


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="too many symbolic links"):
        Image(Archive()).add(f"{tmp_path}/a", "folder")


def test_a_script_brings_its_interpreter(tree: Path) -> None:
    archive = Archive()
    Image(archive).add(f"{tree}/script.sh", "folder")
    names = {os.path.realpath(name) for name in held(archive)}
    assert os.path.realpath(str(shutil.which("env"))) in names
    assert os.path.realpath(str(shutil.which("sh"))) in names
    assert any("libc.so" in name for name in names)


def test_the_folder_comes_without_what_tools_leave_there(tree: Path) -> None:
    archive = Archive()
    image = Image(archive)
    image.add_working_folder(str(tree))
    assert {name for name in held(archive) if name.startswith(f"{tree}/")} == {
        f"{tree}/{name}" for name in ("link", "real/deep/data", "real/again", "script.sh")
    }
    assert image.left_out == []


def test_a_large_folder_stays_outside_and_is_named(tree: Path) -> None:
    with (tree / "huge").open("wb") as file:
        file.truncate(65 << 20)
    archive = Archive()
    image = Image(archive)
    image.add_working_folder(str(tree))
    assert not any(name.startswith(f"{tree}/") for name in held(archive))
    (said,) = image.left_out
    assert str(tree) in said
    assert "--include" in said


def test_what_is_included_must_exist(tree: Path) -> None:
    image = Image(Archive())
    with pytest.raises(UsageError, match="no file, folder or installed Python package"):
        image.add_command(["/bin/sh"], str(tree), ["no-such-package-of-all"])
    archive = Archive()
    Image(archive).add_command(["/bin/sh"], "/", [f"{tree}/env", "pytest"])
    names = held(archive)
    assert f"{tree}/env/pyvenv.cfg" in names
    assert any(name.endswith("/pluggy/__init__.py") for name in names), "what pytest requires"


def test_compiled_modules_are_marked_as_not_to_be_checked(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    compiled = Path(py_compile.compile(str(source), doraise=True) or "")
    archive = Archive()
    Image(archive).add_tree(str(tmp_path), "packages")
    data = held(archive)[str(compiled)]
    assert data[:16] == compiled.read_bytes()[:4] + bytes([1, 0, 0, 0]) + bytes(8)
    assert data[16:] == compiled.read_bytes()[16:]
    # Python itself takes it, whatever the time of the source.
    compiled.write_bytes(data)
    os.utime(source, (1, 1))
    code = "import module; assert module.x == 1; print(module.__cached__)"
    said = subprocess.run([sys.executable, "-v", "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert f"{compiled} matches" in said.stderr
    # One that is stale is left as it is.
    source.write_text("x = 2222\n")
    py_compile.compile(str(source), cfile=str(compiled), doraise=True)
    source.write_text("x = 33\n")
    archive = Archive()
    Image(archive).add(str(compiled), "packages")
    assert held(archive)[str(compiled)] == compiled.read_bytes()


def test_requirements_leave_extras_out() -> None:
    lines = ["jinja2>=3.1", "zope.interface", "rich (>=13)", "mypy; extra == 'dev'", "a[b]~=1"]
    assert list(requirements(lines)) == ["jinja2", "zope.interface", "rich", "a"]


def test_object_files_of_static_libraries_are_not_wanted(tmp_path: Path) -> None:
    for name in ("a.py", "liba.a", "a.opt-2.pyc", "_tkinter.cpython-311.so", "_tkinter.py"):
        (tmp_path / name).write_text("")
    found = {os.path.basename(path) for path in files_below(str(tmp_path), frozenset())}
    assert found == {"a.py", "_tkinter.py"}


def test_an_image_is_chosen_where_the_kernel_cannot_share(tmp_path: Path) -> None:
    (tmp_path / "bzImage-x").write_bytes(b"no kernel")
    config = tmp_path / "config-x"
    options = ("VIRTIO_PCI", "NET_9P_VIRTIO", "9P_FS", "OVERLAY_FS")

    class Qemu:
        version = "1.0"
        shares = True

        def properties(self, _device: str) -> frozenset[str] | None:
            return frozenset() if self.shares else None

    qemu = Qemu()
    config.write_text("".join(f"CONFIG_{name}=y\n" for name in options))
    kernel = Kernel(tmp_path / "bzImage-x")
    assert choose_root("auto", kernel, qemu) == (True, "")
    assert choose_root("image", kernel, qemu) == (False, "")
    qemu.shares = False
    assert choose_root("auto", kernel, qemu) == (False, "QEMU 1.0 lacks virtio-9p-pci")
    qemu.shares = True
    config.write_text("".join(f"CONFIG_{name}=y\n" for name in options if name != "9P_FS"))
    kernel = Kernel(tmp_path / "bzImage-x")
    assert choose_root("auto", kernel, qemu) == (False, "the kernel lacks CONFIG_9P_FS")
    assert choose_root("host", kernel, qemu) == (True, "")
    with pytest.raises(UsageError, match="none of auto, host, image"):
        choose_root("nfs", kernel, qemu)


# -- the way back ---------------------------------------------------------------------------------


@given(
    st.text("abc/é", min_size=1).filter(lambda text: all(text.split("/"))),
    st.integers(0, 0o777),
    st.integers(0, 1 << 60),
    st.one_of(st.binary(), st.integers(0, PIECE).map(lambda length: b"x" * length)),
    st.binary(max_size=5),
)
def test_a_piece_comes_out_as_it_went_in(
    name: str, mode: int, offset: int, data: bytes, rest: bytes
) -> None:
    sent = frame(name, mode, offset, data)
    assert take_piece(sent + rest) == (Piece(name, mode, offset, data), len(sent))
    for length in range(min(len(sent), 60)):
        assert take_piece(sent[:length]) is None


@given(st.data())
def test_a_piece_that_was_damaged_is_refused(data: st.DataObject) -> None:
    sent = bytearray(frame("control/stdout", 0o644, 0, b"some text, not compressed"))
    place = data.draw(st.integers(0, len(sent) - 1))
    sent[place] ^= data.draw(st.integers(1, 255))
    try:
        taken = take_piece(bytes(sent) + bytes(PIECE))
    except LabError:
        return
    # Only what a checksum does not cover may differ, and a length may ask for more.
    assert taken is None or (taken[0].name, taken[0].data) == (
        "control/stdout",
        b"some text, not compressed",
    )


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a//b", "a/./b", "", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "channel").write_bytes(frame(name, 0o644, 0, b"x"))
    with pytest.raises(LabError, match="by the name"):
        Receiver(tmp_path / "channel", tmp_path / "share").poll()
    assert not (tmp_path / "out").exists()


def test_a_compressed_bomb_is_refused() -> None:
    packed = zlib.compress(bytes(PIECE + 1))
    header = HEADER.pack(MAGIC, 1 | COMPRESSED, 0, 0, len(packed), zlib.crc32(packed),
                         zlib.crc32(b"a"))  # fmt: skip
    with pytest.raises(LabError, match="garbled"):
        take_piece(header + b"a" + packed)


def test_files_arrive_as_they_grow(tmp_path: Path) -> None:
    share, back, channel = tmp_path / "share", tmp_path / "back", tmp_path / "channel"
    (share / "control").mkdir(parents=True)
    receiver = Receiver(channel, back)
    receiver.poll()  # nothing has come
    with channel.open("wb", buffering=0) as port:
        mirror = Mirror(str(share), port.write)
        grown = share / "control/stdout"
        for text in (b"", b"one\n", b"two" * PIECE):
            with grown.open("ab") as file:
                file.write(text)
            (share / "control/draft.part").write_bytes(text)
            (share / "control/link").unlink(missing_ok=True)
            (share / "control/link").symlink_to("/etc/passwd")
            mirror.send_new("control")
            receiver.poll()
            assert (back / "control/stdout").read_bytes() == grown.read_bytes()
        grown.chmod(0o700)
        (share / "control/program").write_bytes(b"#!")
        (share / "control/program").chmod(0o755)
        mirror.send_new("control")
        receiver.poll()
    assert sorted(path.name for path in (back / "control").iterdir()) == ["program", "stdout"]
    assert (back / "control/program").stat().st_mode & 0o777 == 0o755


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "channel").write_bytes(frame("a", 0o644, 0, b"x") + frame("a/b", 0o644, 0, b"x"))
    with pytest.raises(LabError, match="a/b of the guest cannot be stored"):
        Receiver(tmp_path / "channel", tmp_path / "share").poll()


def test_a_hole_in_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "channel").write_bytes(frame("a", 0o644, 5, b"x"))
    with pytest.raises(LabError, match="garbled"):
        Receiver(tmp_path / "channel", tmp_path / "share").poll()


def test_the_agent_imports_nothing_of_this_package() -> None:
    source = Path(guest_agent.__file__).read_text(encoding="utf-8")
    assert "vfiokit.lab" not in source.replace("/vfiokit-lab", "")
