"""Demo: a complete run on real text: collect, embed, train, compress, search, measure."""
