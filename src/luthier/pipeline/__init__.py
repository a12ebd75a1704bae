"""Wires the rooms. `order` alone knows the sequence of the stages."""
