"""Records of what only the benchmarks measure, each with its table."""
