"""Reading a whole table to tell whether it is intact."""
