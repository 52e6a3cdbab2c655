"""From a bare machine to a running platform, with nothing but Python's standard library."""
