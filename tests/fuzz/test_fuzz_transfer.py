"""The fuzz target for what a guest sends, on generated inputs."""

from __future__ import annotations

from fuzz_transfer import one_input
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.lab.guest_agent import frame

frames = st.builds(
    frame, st.text(max_size=9), st.integers(0, 0xFFFF), st.integers(0, 9), st.binary(max_size=99)
)


@settings(deadline=None)
@given(st.one_of(st.binary(), st.lists(frames, max_size=3).map(b"".join)))
def test_nothing_that_a_guest_sends_leads_elsewhere(data: bytes) -> None:
    one_input(data)
