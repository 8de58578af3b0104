"""Generate for a list of prompts with several candidates, measure, compare."""
