"""The parts of benchmarks/faithfulness.py: what is retrained, who predicts it, how well, and the table."""
