"""Export: write tables to files that need neither LanceDB nor this package."""
