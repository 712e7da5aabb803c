"""Pictures of a machine: one page with everything on it, and its topology as SVG or DOT."""
