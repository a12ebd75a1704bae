"""Rows that are not on this machine: files in object stores, on the web and on the Hugging Face hub, and what a
database gives for a query.

They are copied once, by content, to LUTHIER_HOME/data (readable by its owner only), and read from there ever after: a
run is repeated with the rows it was made with, and its stages need neither the network nor the password.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from luthier.data.copies import Copy
from luthier.data.database import KEY, fetch_rows
from luthier.data.stores import STORES, fetch_files
from luthier.errors import DataError, RecipeError
from luthier.spec.load import with_environment


def is_url(named: str) -> bool:
    """Whether it names something that is copied before it is read, rather than a file of this machine."""
    if "://" in named:
        return True
    try:
        return "://" in with_environment(named, os.environ)
    except RecipeError:  # a file's name may hold '${NAME}' too
        return False


def fetch(named: str, *, query: str | None, offline: bool, environment: Mapping[str, str] = os.environ) -> Copy | None:
    """The local copy of what a recipe or a command names; None where it names a file of this machine.

    Args:
        named: as it was written; `${NAME}` in a URL still stands for what the environment holds.
        query: of a database.
        offline: whether other machines may be reached.
        environment: where names are looked up.

    Raises:
        DataError: it cannot be reached or read; the message shows `named`, never what the environment holds.
        MissingExtra: what reads such a URL is not installed.
    """
    url = with_environment(named, environment)
    scheme, found, _ = url.partition("://")
    if not found:
        return None
    if scheme in STORES:
        if query is not None:
            raise DataError(f"{named} is a file: {KEY} is for databases", way_out="leave the query out")
        return fetch_files(named, url, offline=offline)
    if query is None:
        raise DataError(
            f"{named} is a database: it takes a query",
            way_out=f"set {KEY}, e.g. SELECT * FROM messages; URLs of files begin with one of: "
            f"{', '.join(STORES)}; a test or validation split of a database is a part of the query's rows",
        )
    return fetch_rows(named, url, query, offline=offline)
