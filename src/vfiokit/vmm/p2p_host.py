"""Hosts for the comparison of ways: a twin of a captured server, or a machine from a text.

Their kernels have the module that answers for guests. What is in use on the captured server is not
on its twin, so its functions are taken whatever their uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.errors import UsageError
from vfiokit.host.processor import Cpu, read_cpu
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import Tree
from vfiokit.machine.assembly import assemble
from vfiokit.machine.kernel import SoftwareKernel, guest_peers
from vfiokit.machine.twin import build_twin
from vfiokit.pci.address import Bdf
from vfiokit.pci.selector import select
from vfiokit.pci.topology import Topology
from vfiokit.vmm.p2p_run import Comparison


def on_twin(tree: Tree, selectors: Sequence[str], *, cpu: Cpu | None = None) -> Comparison:
    """A comparison on the twin of ``tree``, for the functions that ``selectors`` name.

    Raises what :func:`~vfiokit.pci.selector.select` and :class:`Comparison` do.
    """
    topology = read_topology(tree)
    chosen = _select(topology, selectors)
    twin = build_twin(tree)
    return _prepare(twin.kernel, chosen, cpu)


def on_machine(text: str, selectors: Sequence[str], *, cpu: Cpu | None = None) -> Comparison:
    """The same on the machine of a blueprint; see :func:`~vfiokit.machine.assembly.assemble`.

    ``selectors`` may also be names of the text.
    """
    assembly = assemble(text)
    topology = assembly.topology()
    named = [str(assembly[each]) if each in assembly.places else each for each in selectors]
    return _prepare(assembly.kernel, _select(topology, named), cpu)


def _select(topology: Topology, selectors: Sequence[str]) -> tuple[Bdf, ...]:
    found = {each.bdf: each for text in selectors for each in select(topology, text)}
    bridges = [str(bdf) for bdf, function in found.items() if function.is_bridge]
    if bridges:
        raise UsageError(f"{bridges[0]} is a bridge, and bridges stay with the host")
    return tuple(found)


def _prepare(kernel: SoftwareKernel, chosen: Sequence[Bdf], cpu: Cpu | None) -> Comparison:
    known = read_cpu(kernel.tree) or cpu
    guest_peers.load(kernel, cpu=known)
    topology = read_topology(kernel.tree)
    made = Comparison(kernel, topology, [topology[bdf] for bdf in chosen], cpu=known)
    wanted = plan(kernel.tree, chosen, include_group=True)
    forced = [blocker.id for blocker in wanted.blockers if blocker.forcible]
    with tempfile.TemporaryDirectory() as folder:
        apply(kernel, wanted, Path(folder), force=forced)
    return made
