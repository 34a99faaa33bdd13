"""Documents of many vectors: fixed dimensional encodings and MaxSim, on arrays."""
