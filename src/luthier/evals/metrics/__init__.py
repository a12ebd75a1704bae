"""One module a metric, under the names of `luthier.spec.metrics`: `statistics` of items, `value` of their sums."""
