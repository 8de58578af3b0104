"""Scored datasets and indexes to the Hub and back, each with a card."""

from .push import HubError, load_index, push_dataset, push_index

__all__ = ["HubError", "load_index", "push_dataset", "push_index"]
