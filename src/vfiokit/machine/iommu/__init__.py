"""IOMMUs of the software machine: tables in machine memory, translation caches, faults."""
