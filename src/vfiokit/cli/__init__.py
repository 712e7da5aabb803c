"""The command line: one module per subcommand. Parse, call, render; no logic."""
