"""Fast paths, each beside its torch reference and chosen at run time."""
