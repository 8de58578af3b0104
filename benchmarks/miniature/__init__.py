"""The parts of benchmarks/curation.py: the world, who chooses, what came of it, the tables."""
