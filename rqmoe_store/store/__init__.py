"""Compressed tables in LanceDB: the only part of the package, with search, that knows the database."""
