"""The lab: run a command in a throwaway virtual machine with a real Linux kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vfiokit.lab import batch as batching
from vfiokit.lab import equipment, guest_system
from vfiokit.lab.batch import Outcome, Scenario, Target
from vfiokit.lab.equipment import Equipment, Root
from vfiokit.lab.failure import GuestFailedError
from vfiokit.lab.guest_run import Result, prepare
from vfiokit.lab.preset import Iommu
from vfiokit.lab.virtual_machine import OutputCallback
from vfiokit.pci.blueprint import Blueprint

DEFAULT_TOPOLOGY = "rp0(edu0), rp1(nvme0)"
DEFAULT_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """How to build guests. Nothing runs before a method does it; every run is a new guest."""

    topology: Blueprint | str = DEFAULT_TOPOLOGY
    iommu: Iommu | str = Iommu.INTEL
    cpu: str = "zen"
    """A preset of :data:`vfiokit.lab.preset.CPUS` or a model of QEMU's."""
    kernel: str | Path = ""
    """An image; empty: ``VFIOKIT_LAB_KERNEL`` or the host's own."""
    modules: str | Path = ""
    qemu: str = ""
    root: Root | str = Root.AUTO
    """Which files the guest sees: the host's, or those of an image."""
    include: Sequence[str] = ()
    """Files, folders and installed packages to put into an image besides what it has anyway."""
    memory_mib: int = 1024
    smp: int = 1
    append: Sequence[str] = ()
    """More kernel parameters."""
    qemu_arguments: Sequence[str] = ()
    """More of QEMU's own, after all others; node ``x`` of the topology has the id ``dev-x``."""
    needs: Sequence[str] = ()
    """Kernel options, without ``CONFIG_``, to insist on before booting."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the command, besides those of :data:`vfiokit.lab.guest_command.PASSED_ON`."""

    def with_changes(self, **changes: object) -> Lab:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def blueprint(self) -> Blueprint:
        """The topology as a tree."""
        given = self.topology
        return Blueprint.parse(given) if isinstance(given, str) else given

    def run(
        self,
        command: Sequence[str],
        *,
        folder: str | Path | None = None,
        stdin: bytes = b"",
        fetch: Sequence[str] = (),
        output: Path | None = None,
        on_output: OutputCallback | None = None,
    ) -> Result:
        """Boot, run ``command`` in ``folder`` (default: the current one), and end the guest.

        ``fetch`` are shell patterns of files, relative to ``folder``, to bring back; they and
        what the command writes to ``$VFIOKIT_LAB_OUTPUT`` go to the folder ``output``, or into
        :attr:`Result.files`. ``on_output`` gets the streams as they come. Raises
        :class:`~vfiokit.lab.failure.LabError` and :class:`UsageError`; a command that fails is
        no error.
        """
        with prepare(self, command, folder=folder, stdin=stdin, fetch=fetch) as guest:
            return guest.run(self.timeout_s, output, on_output)

    def shell(self, command: Sequence[str] = (), *, folder: str | Path | None = None) -> int:
        """A shell, or ``command``, on this terminal; returns its exit status."""
        wanted = command or (_shell(),)
        window = shutil.get_terminal_size((80, 24))
        size = (window.lines, window.columns)
        with prepare(self, wanted, folder=folder, terminal=size) as guest:
            return guest.interact()

    def run_batch(self, scenarios: Iterable[Scenario | Target]) -> tuple[Outcome, ...]:
        """Call functions in one guest, one after the other, each in a process of its own.

        When the guest dies (a panic, the time is over), the scenario at work gets that as its
        error and those after it are marked as not run. Raises :class:`LabError` when no guest
        came up at all.
        """
        batch = [each if isinstance(each, Scenario) else Scenario(each) for each in scenarios]
        calls = [each.call() for each in batch]
        changed = replace(
            self,
            environment={**self.environment, **batching.environment()},
            include=(*self.include, *batching.sources(calls)),
        )
        work = batching.files(calls)
        with prepare(changed, batching.command(), files=work) as guest:
            try:
                result = guest.run(self.timeout_s, None, None)
            except GuestFailedError as error:
                if not (guest.control / guest_system.STARTED).exists():
                    raise
                return batching.read(guest.control, batch, str(error))
            trouble = result.stderr.decode("utf-8", "replace") if result.status else ""
            return batching.read(guest.control, batch, trouble)

    def run_python(self, target: Target, *arguments: object, **keywords: object) -> Any:  # noqa: ANN401
        """Call one function in a guest and return what it returns.

        ``target`` is a function or ``module:function``; its module must be importable in the
        guest as it is here. Raises :class:`ScenarioError` when it raises.
        """
        (outcome,) = self.run_batch([Scenario(target, arguments, keywords, self.timeout_s)])
        return outcome.require()

    def check(self) -> Equipment:
        """Find QEMU and kernel and check that both can do what is asked; boots nothing."""
        return equipment.find(self)


def _shell() -> str:
    return os.environ.get("SHELL") or "/bin/sh"
