"""`python -m rqmoe_store`: the `rqmoe` command for launchers, which start modules."""

from rqmoe_store.cli import app

app(prog_name="rqmoe")
