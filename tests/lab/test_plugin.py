"""The pytest plugin, used by another project's tests."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

INSTALLED = any(point.value == "vfiokit.testing.plugin" for point in entry_points(group="pytest11"))
LOAD = () if INSTALLED else ("-p", "vfiokit.testing.plugin")

TESTS = """
import pytest

@pytest.mark.lab(topology="rp0(edu:dev)", iommu="intel")
class TestGuest:
    def test_fields_of_the_class(self, lab_host):
        assert lab_host.iommu == "intel"

    @pytest.mark.lab(iommu="none")
    def test_the_nearest_marker_wins(self, lab_host):
        assert (lab_host.topology, lab_host.iommu) == ("rp0(edu:dev)", "none")
"""


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess(*LOAD, "-p", "no:cacheprovider", "-rs", *words)


def test_a_host_without_a_kernel_skips_or_fails_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(TESTS)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("VFIOKIT_LAB_QEMU", "/no/such/qemu")
    skipped = run(pytester)
    skipped.assert_outcomes(skipped=2)
    skipped.stdout.fnmatch_lines(["*neither an executable*apt install*"])
    monkeypatch.setenv("CI", "1")
    run(pytester).assert_outcomes(errors=2)


def test_a_marker_that_makes_no_sense_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.lab("rp(edu)")
        def test_positional(lab_host): ...

        @pytest.mark.lab(topologie="rp(edu)")
        def test_unknown_field(lab_host): ...
        """
    )
    result = run(pytester)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*takes named fields only*", "*topologie*"])


@pytest.mark.slow
def test_another_projects_tests_run_in_guests(pytester: pytest.Pytester, lab_kernel: Path) -> None:
    pytester.makepyfile(
        TESTS
        + """
    @pytest.mark.lab(root="image")
    def test_a_function_from_an_image(self, lab_host):
        assert lab_host.run_python(count_groups) > 1

    def test_a_program_and_a_function(self, lab_host):
        assert "dev=0000:01:00.0" in lab_host.run(["env"]).text
        assert lab_host.run_python(count_groups) > 1

def count_groups():
    import os
    return len(os.listdir("/sys/kernel/iommu_groups"))
"""
    )
    run(pytester, f"--lab-kernel={lab_kernel}").assert_outcomes(passed=4)
