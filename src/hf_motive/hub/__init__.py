"""Scored datasets, indexes and trained models to the Hub and back, each with a card."""

from .model_card import ModelFacts, model_card, write_card
from .models import push_model, settle_model
from .push import HubError, load_index, push_dataset, push_index

__all__ = [
    "HubError",
    "ModelFacts",
    "load_index",
    "model_card",
    "push_dataset",
    "push_index",
    "push_model",
    "settle_model",
    "write_card",
]
