"""Bulk ingestion: files, arrays, tables and streams of any size into compressed tables, exactly once."""
