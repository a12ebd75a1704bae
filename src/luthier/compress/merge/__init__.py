"""Merge what trained runs have learned into one model: task vectors in, one task vector out, written as it is asked."""
