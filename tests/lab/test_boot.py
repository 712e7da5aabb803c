"""A real kernel, booted: the lab itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vfiokit
from vfiokit.errors import UsageError
from vfiokit.lab import (
    GuestFailedError,
    GuestTimeoutError,
    KernelLacksError,
    Lab,
    LabError,
    Scenario,
    ScenarioError,
)

pytestmark = pytest.mark.slow


def answer(*words: object, **named: object) -> dict[str, object]:
    sys.stdout.write("said in the guest\n")
    return {"words": list(words), "named": named}


def kernel_of_this_process() -> tuple[str, int]:
    return os.uname().release, os.getuid()


def raise_value_error() -> None:
    raise ValueError("as told")


def crash_the_kernel() -> None:
    Path("/proc/sysrq-trigger").write_text("c")


def die_by_signal() -> None:
    os.kill(os.getpid(), 11)


def test_one_line_of_python_sees_the_groups_of_the_guest(lab: Lab) -> None:
    code = "import os; print(*sorted(os.listdir('/sys/kernel/iommu_groups'), key=int))"
    result = lab.run([sys.executable, "-c", code])
    assert result.status == 0
    numbers = [int(word) for word in result.text.split()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 4  # two root ports, an edu, an nvme
    assert set(result.phases) == {"prepare", "boot", "command", "exit"}
    assert sum(result.phases.values()) == pytest.approx(result.seconds, abs=0.1)


def test_streams_status_files_and_folder_come_back(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("of the host")
    script = (
        "cat here; cat; echo trouble >&2; mkdir -p sub; echo fetched > sub/a.txt; echo x > b.txt;"
        'echo left > "$VFIOKIT_LAB_OUTPUT/left"; exit 7'
    )
    result = lab.run(
        ["sh", "-c", script], folder=tmp_path, stdin=b" and stdin\n", fetch=["sub/*.txt", "none*"]
    )
    assert (result.status, result.text, result.stderr) == (
        7,
        "of the host and stdin\n",
        b"trouble\n",
    )
    assert result.files == {"left": b"left\n", "sub/a.txt": b"fetched\n"}
    assert not (tmp_path / "sub").exists()  # what the guest writes stays in the guest


def test_a_signal_is_told_as_shells_tell_it(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "kill -9 $$"]).status == 128 + 9


def test_output_is_streamed_while_the_command_runs(lab: Lab) -> None:
    seen: list[tuple[str, bytes]] = []
    lab.run(["sh", "-c", "echo one; sleep 1; echo two"], on_output=lambda *pair: seen.append(pair))
    assert [data for name, data in seen if name == "stdout"] == [b"one\n", b"two\n"]


def test_loopback_shared_memory_and_terminals_are_there(lab: Lab) -> None:
    code = (
        "import socket, os, multiprocessing.shared_memory as m\n"
        "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())\n"
        "m.SharedMemory(create=True, size=4096).unlink(); os.openpty(); print(os.getuid())"
    )
    result = lab.run([sys.executable, "-c", code])
    assert (result.text, result.stderr) == ("0\n", b"")


def test_a_guest_that_hangs_is_stopped_with_its_last_words(lab: Lab) -> None:
    script = "echo last words > /dev/kmsg; echo '<1>last words' > /dev/kmsg; sleep 1000"
    with pytest.raises(GuestTimeoutError, match="stopped after 6 s") as caught:
        lab.with_changes(timeout_s=6).run(["sh", "-c", script])
    assert "last words" in str(caught.value)


def test_a_panic_is_told_with_its_last_words(lab: Lab) -> None:
    with pytest.raises(GuestFailedError, match="sysrq triggered crash") as caught:
        lab.run(["sh", "-c", "echo c > /proc/sysrq-trigger"])
    assert "Call Trace" in str(caught.value)


def test_scenarios_share_a_boot_and_fail_alone(lab: Lab) -> None:
    first, second, third, fourth = lab.run_batch(
        [
            Scenario(answer, (1, "two"), {"three": [3]}),
            raise_value_error,
            die_by_signal,
            kernel_of_this_process,
        ]
    )
    assert first.require() == {"words": [1, "two"], "named": {"three": [3]}}
    assert first.output == "said in the guest\n"
    assert second.error == "ValueError: as told"
    assert "raise_value_error" in second.traceback
    assert third.error == "killed by SIGSEGV"
    release, user = fourth.require()
    assert release != os.uname().release
    assert user == 0


def test_a_panic_is_blamed_on_the_scenario_at_work(lab: Lab) -> None:
    before, during, after = lab.run_batch([answer, crash_the_kernel, answer])
    assert before.ok
    assert "Kernel panic" in during.error
    assert "not run" in after.error


def test_run_python_returns_or_raises(lab: Lab) -> None:
    assert lab.run_python(answer, 5) == {"words": [5], "named": {}}
    with pytest.raises(ScenarioError, match="ValueError: as told"):
        lab.run_python(raise_value_error)


def test_what_cannot_work_is_said_before_booting(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such program"):
        lab.run(["no-such-program"])
    with pytest.raises(UsageError, match="is no folder"):
        lab.run(["true"], folder=tmp_path / "none")
    with pytest.raises(UsageError, match="a /dev of its own"):
        lab.run(["true"], folder="/dev/shm")
    with pytest.raises(UsageError, match="cannot be called in a guest"):
        lab.run_python(lambda: 1)
    with pytest.raises(UsageError, match="JSON"):
        lab.run_python(answer, object())
    with pytest.raises(UsageError, match="none of intel"):
        lab.with_changes(iommu="smmu").check()
    with pytest.raises(KernelLacksError, match="CONFIG_NO_SUCH_OPTION"):
        lab.with_changes(needs=["NO_SUCH_OPTION"]).check()


def test_a_device_that_qemu_refuses_is_told_in_its_words(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"QEMU refuses: .*no-such-cpu"):
        lab.with_changes(cpu="no-such-cpu").run(["true"])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("root", ["host", "image"])
def test_an_unprivileged_user_can_run_a_lab(lab: Lab, root: str) -> None:
    python = "/usr/bin/python3"
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534); os.environ['HOME'] = '/tmp'\n"
        "sys.version_info >= (3, 11) or sys.exit('too old')\n"
        "from vfiokit.lab import Lab\n"
        "result = Lab(kernel=sys.argv[1], root=sys.argv[2]).run(['id', '-u'])\n"
        "print(os.getuid(), result.text)"
    )
    package = Path(vfiokit.__file__).parents[1]
    done = subprocess.run(
        [python, "-c", script, str(lab.kernel), root],
        env={**os.environ, "PYTHONPATH": str(package), "TMPDIR": "/tmp"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "too old" in done.stderr or not os.access(python, os.X_OK):
        pytest.skip(f"{python} is older than 3.11")
    assert done.stdout.split() == ["65534", "0"], done.stderr
