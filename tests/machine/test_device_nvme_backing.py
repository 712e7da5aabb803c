from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme import BlockStore, FileStore, MemoryStore

SIZE = 40_000

operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "read"]),
        st.integers(0, SIZE - 1),
        st.integers(0, SIZE),
        st.integers(1, 255),
    ),
    max_size=30,
)


@contextmanager
def stores(path: Path) -> Iterator[list[BlockStore]]:
    path.unlink(missing_ok=True)
    with FileStore.create(path, SIZE) as file:
        yield [file, MemoryStore(SIZE, extent_size=4096), MemoryStore(SIZE)]


@given(operations=operations)
@settings(max_examples=60, deadline=None)
def test_every_store_behaves_as_one_array(
    operations: list[tuple[str, int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("store") / "image"
    model = bytearray(SIZE)
    with stores(path) as made:
        for kind, offset, length, fill in operations:
            end = min(offset + length, SIZE)
            if kind == "write":
                model[offset:end] = bytes([fill]) * (end - offset)
            elif kind == "zero":
                model[offset:end] = bytes(end - offset)
            for store in made:
                if kind == "write":
                    store.write(offset, bytes([fill]) * (end - offset))
                elif kind == "zero":
                    store.zero(offset, end - offset)
                else:
                    assert store.read(offset, end - offset) == model[offset:end]
        for store in made:
            assert store.read(0, SIZE) == model
    assert path.read_bytes() == model


def test_memory_is_used_by_written_extents_only() -> None:
    store = MemoryStore(1 << 40)
    assert store.used() == 0
    assert bytes(store.read(1 << 39, 512)) == bytes(512)
    assert store.used() == 0
    store.write(1 << 39, b"x")
    assert store.used() == 1 << 20
    store.zero(0, 1 << 40 >> 20)
    store.zero(1 << 39, 1 << 20)
    assert store.used() == 0


def test_a_file_with_holes_is_cleared_without_looking_at_the_holes(tmp_path: Path) -> None:
    with FileStore.create(tmp_path / "huge", 1 << 42) as store:
        store.write(1 << 40, b"data" * 1024)
        assert store.used() <= 1 << 16
        store.zero(0, 1 << 42)
        assert bytes(store.read(1 << 40, 4096)) == bytes(4096)
        assert store.used() <= 1 << 16


def test_read_only_stores_refuse_changes(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"data" * 1024)
    with FileStore.open(path, read_only=True) as file:
        for store in (file, MemoryStore(4096, read_only=True)):
            assert store.read_only
            with pytest.raises(PermissionError):
                store.write(0, b"x")
            with pytest.raises(PermissionError):
                store.zero(0, 512)
            store.flush()
    assert path.read_bytes() == b"data" * 1024


def test_bad_stores_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        MemoryStore(0)
    with pytest.raises(UsageError):
        MemoryStore(4096, extent_size=3000)
    with pytest.raises(UsageError):
        FileStore.create(tmp_path / "none", 0)
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty"):
        FileStore.open(tmp_path / "empty")
    with pytest.raises(FileExistsError):
        FileStore.create(tmp_path / "empty", 512)
    with pytest.raises(FileNotFoundError):
        FileStore.open(tmp_path / "missing")
