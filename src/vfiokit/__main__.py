"""``python -m vfiokit``."""

from vfiokit.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
