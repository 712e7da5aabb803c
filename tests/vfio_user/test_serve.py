"""``vfiokit serve`` from the outside: sockets, signals, options, what it says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from vfiokit.cli.main import main
from vfiokit.cli.schema_source import schema
from vfiokit.driver.edu import Edu
from vfiokit.driver.nvme import NvmeController
from vfiokit.vfio_user.client import Client
from vfiokit.vfio_user.kernel import open_socket

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "vfiokit", "serve"]


class Served:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], path: Path) -> None:
        self.process = process
        self.path = path

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Stop it by a signal; its exit code, output and errors."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextlib.contextmanager
def serve(path: Path, *words: str, **options: object) -> Iterator[Served]:
    process = subprocess.Popen(
        [*COMMAND, *words, *([] if "--fd" in words else ["--socket", str(path)])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    try:
        if "--fd" not in words:
            deadline = time.monotonic() + 20
            while not _listens(path):
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield Served(process, path)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _listens(path: Path) -> bool:
    """Whether the socket is bound and listened at, without being a client of it."""
    try:
        listening = Path("/proc/net/unix").read_text(encoding="utf-8")
    except OSError:
        return path.exists()
    return any(
        line.endswith(f" {path}") and line.split()[3] == "00010000"
        for line in listening.splitlines()
    )


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command line that makes no sense is told; it must not serve."""
    assert main(["serve", *words]) in (1, 2, 4)
    return capsys.readouterr().err


def test_a_disk_keeps_its_data_over_clients_and_servers(tmp_path: Path) -> None:
    path, image = tmp_path / "disk.sock", tmp_path / "disk.img"
    for turn in range(2):
        with serve(
            path, "nvme", "--backing", str(image), *(["--size", "4M"] * (not turn))
        ) as served:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            for client in range(2):
                with open_socket(path) as device, NvmeController(device) as controller:
                    drive = controller.namespace(1)
                    number = 2 * turn + client
                    drive.write_bytes(number, bytes([number + 1]) * 512)
                    for before in range(number + 1):
                        assert drive.read_bytes(before, 1) == bytes([before + 1]) * 512
            code, out, err = served.end()
        assert (code, out) == (0, "")
        assert "client 2 connected: process" in err
        assert "client 2 is gone" in err
        assert not path.exists()
    assert image.stat().st_size == 4 << 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_also_with_a_client(tmp_path: Path, number: int) -> None:
    path = tmp_path / "edu.sock"
    with serve(path, "edu") as served, Client.connect(path) as client:
        client.device_info()
        code, _out, err = served.end(number)
    assert code == 0
    assert "Traceback" not in err
    assert not path.exists()


def test_edu_keeps_its_registers_between_clients(tmp_path: Path) -> None:
    with serve(tmp_path / "edu.sock", "edu") as served:
        with Client.connect(served.path) as client:
            client.region_write(0, 4, b"\x12\x34\x56\x78")
        with Client.connect(served.path) as client:
            assert client.region_read(0, 4, 4) == b"\xed\xcb\xa9\x87"
        with open_socket(served.path) as device, Edu(device) as driver:
            assert driver.factorial(5) == 120


def test_once_ends_with_the_first_client(tmp_path: Path) -> None:
    with serve(tmp_path / "edu.sock", "edu", "--once") as served:
        Client.connect(served.path).close()
        assert served.process.wait(20) == 0
    assert not served.path.exists()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edu.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serve(path, "edu"):
        assert "a server listens there already" in refused(capsys, "edu", "--socket", str(path))
        Client.connect(path).close()


def test_a_file_in_the_way_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "choose another" in refused(capsys, "edu", "--socket", str(path))
    assert path.read_text() == "data"


def test_an_inherited_listening_socket_is_served(tmp_path: Path) -> None:
    path = tmp_path / "edu.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        fd = listening.fileno()
        with serve(path, "edu", "--fd", str(fd), pass_fds=(fd,)) as served:
            with Client.connect(path) as client:
                assert client.device_info().num_regions == 9
            assert served.end()[0] == 0
    assert path.exists()  # it belongs to whoever made it


def test_an_inherited_connected_socket_is_the_only_client(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    with serve(tmp_path / "x", "edu", "--fd", str(fd), pass_fds=(fd,)) as served:
        theirs.close()
        with Client(ours) as client:
            assert client.device_info().num_regions == 9
        assert served.process.wait(20) == 0


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with serve(tmp_path / "edu.sock", "edu", env=environment) as served:
            assert manager.recv(100) == b"READY=1"
            served.end()
            assert manager.recv(100) == b"STOPPING=1"


def test_a_device_of_ones_own_takes_arguments(tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    example = f"{ROOT / 'examples' / 'checksum.py'}:Checksum"
    with serve(path, example, "--set", "start=0x10") as served:
        with Client.connect(path) as client:
            assert client.region_read(0, 0, 4) == b"3CRC"
        assert served.end()[0] == 0


def test_a_trace_in_json_is_what_its_schema_says(tmp_path: Path) -> None:
    with serve(tmp_path / "edu.sock", "edu", "--trace", "--json") as served:
        with Client.connect(served.path) as client:
            client.region_write(0, 4, bytes(4))
            client.region_read(0, 0, 64)
            client.reset()
        code, out, _err = served.end()
    assert code == 0
    validator = Draft202012Validator(schema("serve-event"))
    events = [json.loads(line) for line in out.splitlines()]
    for event in events:
        validator.validate(event)
    assert [(event["kind"], event["name"], event["value"]) for event in events] == [
        ("write", "liveness", 0),
        ("read", "", None),
        ("reset", "", None),
    ]


def test_a_reader_of_the_trace_may_leave(tmp_path: Path) -> None:
    """The device is more important than what is said about it."""
    with serve(tmp_path / "edu.sock", "edu", "--trace") as served:
        assert served.process.stdout is not None
        served.process.stdout.close()
        with Client.connect(served.path) as client:
            for _ in range(3):
                client.region_write(0, 4, bytes(4))
            assert client.region_read(0, 4, 4) == b"\xff" * 4
        served.process.stdout = None
        assert served.end()[0] == 0


def test_limits_are_what_a_client_is_told(tmp_path: Path) -> None:
    limits = ("--max-dma-maps", "7", "--max-transfer", "64K", "--max-fds", "3", "--no-twin")
    path = tmp_path / "edu.sock"
    with serve(path, "edu", *limits), Client.connect(path) as client:
        agreed = client.agreed
    assert (agreed.max_dma_maps, agreed.max_data_xfer_size, agreed.max_msg_fds) == (7, 65536, 3)
    assert not agreed.twin_socket


WRONG = {
    "toaster": "write nvme, edu, or FILE.py:NAME",
    "nowhere.py:Device": "nowhere.py is no file",
    "nvme --msix 1": "2 to 2048",
    "nvme --cmb 100": "multiple of 4 KiB",
    "nvme --size 100": "multiple of 512",
    "nvme --read-only --backing {folder}/none": "does not exist",
    "nvme --backing {folder}": "is a folder",
    "nvme --backing {folder}/empty": "is empty",
    "nvme --backing {folder}/small --size 1M": "has 1024 bytes",
    "nvme --dma-bits 30": "--dma-bits is for edu",
    "edu --backing x": "--backing is for nvme",
    "edu --set a=1": "--set is for FILE.py:NAME",
    "edu --dma-bits 65": "between 12 and 64",
    "edu --max-fds 0": "between 1 and 253",
    "edu --max-transfer 1G": "between 4096 and",
    "{folder}/own.py:Missing": "has no Missing",
    "{folder}/own.py:number": "something else than a class",
    "{folder}/own.py:NoDevice": "lacks name, regions",
    "{folder}/own.py:Fails": "ZeroDivisionError: division by zero (own.py:5)",
    "{folder}/own.py:NoDevice --set x": "--set NAME=VALUE",
    "{folder}/own.py:NoDevice --set x=1": "takes no arguments",
    "{folder}/broken.py:Device": "SyntaxError",
    "{folder}/imports.py:Device": "ModuleNotFoundError",
}


@pytest.mark.parametrize(("words", "said"), WRONG.items(), ids=WRONG)
def test_what_makes_no_sense_is_said(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(bytes(1024))
    (tmp_path / "own.py").write_text(
        "number = 7\nclass NoDevice: pass\nclass Fails:\n    def __init__(self):\n        1 / 0\n"
    )
    (tmp_path / "broken.py").write_text("class Device(:\n")
    (tmp_path / "imports.py").write_text("import nothing_of_that_name\n")
    path = tmp_path / "socket"
    err = refused(capsys, *words.format(folder=tmp_path).split(), "--socket", str(path))
    assert said in err
    assert "Traceback" not in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: os.open("/dev/null", os.O_RDWR), "no socket"),
        (lambda: socket.socket(socket.AF_INET).detach(), "no stream socket of the unix family"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(), "no stream socket"),
    ],
)
def test_a_descriptor_that_is_no_socket_is_said(
    make, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = make()
    try:
        assert said in refused(capsys, "edu", "--fd", str(fd))
    finally:
        os.close(fd)


def test_a_path_that_is_too_long_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "107 bytes" in refused(capsys, "edu", "--socket", str(tmp_path / ("x" * 200)))
