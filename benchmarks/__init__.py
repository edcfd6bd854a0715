"""How fast the expensive steps are, and how near to what the machine can do: `python -m benchmarks`."""
