"""Luthier fits a language model to one purpose, and proves that it did."""

__version__ = "0.1.0"
