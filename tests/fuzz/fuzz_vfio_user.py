"""Whatever a peer sends, it is cut into messages that read and write back, or a ProtocolError.

Run with ``python tests/fuzz/fuzz_vfio_user.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Cut into chunks of 1 to 256 bytes as the first byte says; read every payload both ways."""
    from vfiokit.errors import ProtocolError
    from vfiokit.vfio_user import payload
    from vfiokit.vfio_user.session import Version
    from vfiokit.vfio_user.wire import Command, Framer

    readers = {
        Command.VERSION: Version.unpack,
        Command.DMA_MAP: payload.DmaMap.unpack,
        Command.DMA_UNMAP: payload.DmaUnmap.unpack,
        Command.DEVICE_GET_INFO: payload.DeviceInfo.unpack,
        Command.DEVICE_GET_REGION_INFO: payload.RegionInfo.unpack,
        Command.DEVICE_GET_REGION_IO_FDS: payload.RegionIoFds.unpack,
        Command.DEVICE_GET_IRQ_INFO: payload.IrqInfo.unpack,
        Command.DEVICE_SET_IRQS: payload.SetIrqs.unpack,
        Command.REGION_WRITE_MULTI: payload.unpack_writes,
        Command.DEVICE_FEATURE: payload.Feature.unpack,
    }
    if not data:
        return
    step, framer, length = data[0] + 1, Framer(), 0
    with contextlib.suppress(ProtocolError):
        for at in range(1, len(data), step):
            for message in framer.feed(data[at : at + step]):
                length += len(message.pack())
                assert length < len(data)
                reader = readers.get(message.command)  # type: ignore[call-overload]
                if reader is None:
                    continue
                with contextlib.suppress(ProtocolError):
                    value = reader(message.payload)
                    if message.command not in (Command.REGION_WRITE_MULTI, Command.VERSION):
                        assert reader(value.pack()).pack() == value.pack()


if __name__ == "__main__":
    fuzz(one_input)
