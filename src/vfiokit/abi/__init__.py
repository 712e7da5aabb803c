"""Numbers and structs of the kernel and wire ABIs, C names verbatim. No behaviour."""
