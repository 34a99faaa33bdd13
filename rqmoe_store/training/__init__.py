"""Training: vectors to a codec, by sampling, initialization and the optimization loop."""
