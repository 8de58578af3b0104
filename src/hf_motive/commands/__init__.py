"""What `hf-motive select`, `push` and `inspect` do: a source to a folder, to the Hub, or to an answer."""
