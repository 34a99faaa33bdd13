"""Command line `rqmoe bench`: searches by more than nearest vectors. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""
