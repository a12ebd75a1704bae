"""Weights: what a base model is, how it is loaded, adapted and saved."""
