"""Fine-tuning on what was selected."""
