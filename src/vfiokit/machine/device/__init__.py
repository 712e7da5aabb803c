"""Device models: what a function does behind its BARs, one module or package per device."""
