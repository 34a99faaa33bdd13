"""Fragments of a table: which columns they have, and putting new rows in the place of old ones."""

import lance


def has_column(dataset: lance.LanceDataset, fragment: lance.LanceFragment, name: str) -> bool:
    """Whether a fragment has data for a column; all of its rows are null there otherwise."""
    field_ids = {field.id() for field in dataset.lance_schema.fields() if field.name() == name}
    return any(field_ids.intersection(file.fields) for file in fragment.data_files())
