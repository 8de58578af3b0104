"""Tiny real pipelines, one page a family, each with a training step written by hand: the oracles of `PipelineStep`."""
