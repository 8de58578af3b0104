"""Motion and quality of videos as `evaluate` modules."""
