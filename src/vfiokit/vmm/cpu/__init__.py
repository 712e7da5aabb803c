"""The processor of the small hypervisor in Python.

``interpreter`` runs blocks that ``translate`` makes of guest instructions: ``arithmetic`` and
``flow`` write their Python source with ``source``, by what ``traits`` says of each; ``system``,
``delivery`` and ``strings`` are the routines that the generated code calls; ``mmu`` and ``ram`` are
its memory, ``core`` and ``registers`` its registers, ``flags`` the arithmetic flags.
"""

from vfiokit.vmm.cpu.interpreter import Interpreter

__all__ = ["Interpreter"]
