"""Fast paths beside torch references, chosen at run time by device; importing this package needs nothing but torch."""
