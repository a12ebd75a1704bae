"""Formats of data files, one module each: `look` finds out how a file is read, `read` yields its rows."""
