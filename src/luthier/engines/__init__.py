"""One way to ask a model, whatever runs it."""
