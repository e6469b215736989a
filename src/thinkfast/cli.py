"""The `thinkfast` command: finds the verbs, turns errors into messages and exit codes.

Why one file per verb elsewhere: a verb can be added without touching this file, and `--help` stays fast because
nothing heavy is imported before a verb runs. Exit codes: 0 done, 2 a mistake that the message explains, 130 Ctrl-C,
143 SIGTERM.

    thinkfast --help
"""

from __future__ import annotations

import errno
import importlib
import pkgutil
import signal
import sys
from types import FrameType, ModuleType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

import thinkfast
from thinkfast import commands
from thinkfast.errors import ThinkfastError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class _Group(TyperGroup):
    """A command group that ends a verb's ThinkfastError or Ctrl-C with a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ThinkfastError as error:
            _report(error)
            raise typer.Exit(EXIT_USER_ERROR) from error
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            where = error.filename or "what this prints"
            _say(f"error: there is no space left for {where}\nremedy: free some space, or write elsewhere")
            raise typer.Exit(EXIT_USER_ERROR) from error
        except KeyboardInterrupt as stop:
            _say(f"\ninterrupted.{self._goes_on(ctx)}")
            raise typer.Exit(EXIT_INTERRUPTED) from stop

    def _goes_on(self, ctx: Any) -> str:
        """What the same command would do, where that is not to begin anew."""
        verb = self.commands.get(ctx.invoked_subcommand or "")
        module = sys.modules.get(getattr(verb.callback, "__module__", "")) if verb is not None else None
        resumes = getattr(module, "RESUMES", None)
        return f" Run the same command again: it goes on from {resumes}." if resumes else ""


def build_app(package: ModuleType = commands) -> typer.Typer:
    """The typer application with one verb per module of `package` (convention in `commands/__init__.py`)."""
    app = typer.Typer(
        name="thinkfast",
        cls=_Group,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,  # a bug keeps its plain traceback, which is what a report needs
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Start with: [bold]thinkfast demo --quick[/bold]",
    )
    app.callback()(_root)
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    for module in sorted(modules, key=lambda module: (module.ORDER, module.__name__)):
        verb = module.__name__.rpartition(".")[2].replace("_", "-")
        app.command(verb, epilog=_examples(module.EXAMPLES))(module.run)
    return app


def main() -> None:
    """Entry point of the `thinkfast` script."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        build_app()()
    except KeyboardInterrupt:  # while the verbs were being imported
        sys.exit(EXIT_INTERRUPTED)


def _terminate(number: int, _: FrameType | None) -> None:
    """End in order, so that what a verb holds beside files (worker processes, their semaphores) goes with it."""
    signal.signal(number, signal.SIG_DFL)  # a second one ends it wherever it is
    sys.exit(128 + number)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thinkfast {thinkfast.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Distil a teacher into a student, sample many chains of thought, answer before a deadline."""


def _examples(text: str) -> str:
    # typer joins single line breaks of an epilog into one paragraph, so each line becomes its own; and an
    # example's [brackets] are text, not markup.
    lines = [line.strip().replace("[", r"\[") for line in text.strip().splitlines() if line.strip()]
    return "\n\n".join(["[bold]Examples[/bold]", *lines])


def _report(error: ThinkfastError) -> None:
    message = Text("error: ", style="bold red")
    message.append(error.message, style="not bold default")
    message.append("\n  remedy: ", style="bold")
    message.append(error.remedy, style="not bold default")
    _say(message)


def _say(message: str | Text) -> None:
    # soft_wrap: paths and values in a message stay on one line, so that they can be copied and searched for.
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(message)


if __name__ == "__main__":
    main()
