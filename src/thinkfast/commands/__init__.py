"""The verbs of the command line, one file per verb; the CLI finds them by listing this folder.

Convention for `commands/<verb>.py` (an underscore in the file name is a hyphen in the verb):

- a function `run(...)` with typer options, whose docstring is the verb's help;
- `EXAMPLES`, a string of shell lines with `#` remarks, shown under the help: help teaches by example;
- `ORDER`, an int: where the verb stands in `thinkfast --help` (smaller first);
- `RESUMES`, a string, where the same command goes on after Ctrl-C: from what;
- at module level no heavy import (torch, transformers, matplotlib, anything that imports them): `--help` imports
  every file here. Import inside `run`.

Errors for users are raised as `thinkfast.errors.*`; the CLI prints them and exits with code 2.
"""
