"""Query to rows: probe, scan, shortlist, parallel decode, exact rerank, take."""
