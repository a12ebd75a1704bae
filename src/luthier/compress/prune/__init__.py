"""Pruning: what says how little a layer, a channel or a head does, and a plain, smaller model of what stays."""
