"""Forms in which the tuned model leaves the house."""
