"""One suite of behaviours, run on the software machine and on a real Linux kernel."""
