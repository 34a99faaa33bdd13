"""Verification: read a whole table and report damage."""
