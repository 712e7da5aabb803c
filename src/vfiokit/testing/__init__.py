"""For tests of programs that use VFIO: a pytest plugin.

Installed with vfiokit, the plugin offers the fixture ``lab_host``, a
:class:`~vfiokit.lab.laboratory.Lab` set up by the marker ``lab``::

    @pytest.mark.lab(topology="rp0(edu:dev)", iommu="intel")
    def test_my_program_finds_the_device(lab_host):
        result = lab_host.run(["./my-vfio-test"])
        assert result.status == 0, result.console
"""
