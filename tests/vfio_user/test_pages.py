"""What the pages about serving show is what happens."""

from __future__ import annotations

import mmap
import os
import re
import threading
from pathlib import Path

import pytest
from served import serving

from vfiokit.kernel import linux
from vfiokit.vfio_user.catalogue import from_file, nvme
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.listen import Listener, bind
from vfiokit.vfio_user.payload import DmaMap
from vfiokit.vfio_user.server import Server
from vfiokit.vfio_user.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
OWN = (ROOT / "docs" / "own-device.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "vfio-user.md").read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_tutorial_shows_the_example() -> None:
    example = (ROOT / "examples" / "checksum.py").read_text(encoding="utf-8")
    assert blocks(OWN, "python")[0] in example


def test_the_tutorials_program_and_trace_agree_with_the_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checksum.sock"
    device = from_file(f"{ROOT / 'examples' / 'checksum.py'}:Checksum")
    seen: list[str] = []
    server = Server(device, observer=Trace(device, lambda event: seen.append(str(event))))
    listener = Listener(server, bind(path), once=True, path=path)
    thread = threading.Thread(target=listener.run)
    thread.start()
    program = blocks(OWN, "python")[1].replace("/tmp/checksum.sock", str(path))
    exec(compile(program, "own-device.md", "exec"), {})
    thread.join(10)
    first, second = capsys.readouterr().out.split()
    assert first == second
    lines = iter(seen)
    for shown in blocks(OWN, "text")[0].splitlines():
        assert shown in lines, shown


def test_the_trace_of_an_nvme_controller_is_as_shown() -> None:
    device = nvme(size=1 << 20)
    seen: list[str] = []
    server = Server(device, observer=Trace(device, lambda event: seen.append(str(event))))
    with serving(server) as (sock, _ended), Client(sock) as client:
        client.region_write(0, 0x24, b"\x0f\0\x0f\0")
        client.region_write(0, 0x14, (0x00460001).to_bytes(4, "little"))
        client.region_read(0, 0x1C, 4)
        client.region_write(0, 0x1000, b"\1\0\0\0")
    shown = next(text for text in blocks(SERVING, "text") if "CSTS" in text)
    lines = iter(seen)
    for line in shown.splitlines():
        assert line in lines, line


def test_the_warning_of_private_memory_is_as_shown(caplog: pytest.LogCaptureFixture) -> None:
    (shown,) = [text.strip() for text in blocks(SERVING, "text") if "private" in text]
    fd = linux.memory_file("guest", 1 << 20)
    with (
        mmap.mmap(fd, 1 << 20, mmap.MAP_PRIVATE),
        serving(Server(nvme(size=1 << 20))) as (sock, _ended),
        Client(sock) as client,
    ):
        client.dma_map(DmaMap(0, 1 << 20), fd)
    os.close(fd)
    assert shown in [record.getMessage() for record in caplog.records]
