"""Assignment as a plan: look, decide, apply with a journal, undo."""
