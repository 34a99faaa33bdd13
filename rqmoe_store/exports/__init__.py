"""Tables written to files that need neither LanceDB nor this package."""
