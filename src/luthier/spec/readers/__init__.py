"""Descriptors of data formats; what reads them is in `luthier.data.readers`."""
