"""PCI as pure values: addresses, configuration space, BARs, capabilities, topology. No I/O."""
