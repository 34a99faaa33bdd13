"""How good a codec is: recall, distortion and comparison on the user's own data."""
