"""The decode step's arithmetic in C, for machines that have a C compiler."""
