"""What a distillation shows in the terminal: its plan, a progress bar a student, and each gate's figure.

Where no terminal shows the bars move, a line now and then says as much.

Usage: ``with DistillView({"pure": recipe}, console) as view: run_recipe(..., on_step=partial(view.step, "pure"))``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from thinkfast.distill.gates import GateResult
from thinkfast.distill.recipe import Recipe
from thinkfast.distill.trainer import StepEvent
from thinkfast.report.wording import seconds_text

EVERY = 30.0  # seconds between a student's lines where no terminal shows its bar move


def print_plan(recipe: Recipe, console: Console) -> None:
    """The recipe in words: what becomes of every layer, and what every stage does."""
    if recipe.new_teacher is not None:
        console.print(f"[bold]{recipe.name}[/bold]: a new teacher, {recipe.new_teacher.layers} layers")
    else:
        from thinkfast.models.loading import find_model, read_spec
        from thinkfast.models.transfer import plan_transfer

        spec = read_spec(find_model(recipe.teacher))
        student = spec.as_student(recipe.keep, recipe.d_state)
        console.print(
            f"[bold]{recipe.name}[/bold]: from {recipe.teacher} ({spec.n_params:,} parameters) to a student with "
            f"{student.n_attention} of {student.n_layers} layers of attention ({student.n_params:,} parameters)"
        )
        for layer in plan_transfer(spec, student).layers:
            console.print(f"  {layer}")
    for stage in recipe.stages:
        gate = "" if stage.gate is None else f", gate {stage.gate:g}"
        console.print(f"  {stage.name}: {stage.tokens:,.0f} tokens in {stage.steps:,} steps, lr {stage.lr:g}{gate}")


class DistillView:
    """A progress bar a student; gates are printed above the bars as they are passed."""

    def __init__(self, recipes: Mapping[str, Recipe], console: Console) -> None:
        self._totals = {name: sum(stage.steps for stage in recipe.stages) for name, recipe in recipes.items()}
        self._before: dict[str, dict[str, int]] = {
            name: {str(stage.name): sum(s.steps for s in recipe.stages[:i]) for i, stage in enumerate(recipe.stages)}
            for name, recipe in recipes.items()
        }
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[stage]:<8} {task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        width = max(map(len, recipes))
        self._tasks = {
            name: self._bar.add_task(name.ljust(width), total=total, stage="starting", shown="")
            for name, total in self._totals.items()
        }
        self._said = dict.fromkeys(recipes, time.monotonic())
        self._first: dict[tuple[str, str], int] = {}  # the step at which this process came to a student's stage

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            for name, task in self._tasks.items():
                self._bar.update(task, completed=self._totals[name], stage="done", shown="")
        self._bar.stop()

    def step(self, name: str, event: StepEvent) -> None:
        """One optimiser step of one student."""
        shown = f"step {event.step}/{event.steps}  loss {event.loss:.4f}"
        done = self._before[name][event.stage] + event.step
        self._bar.update(self._tasks[name], completed=done, stage=event.stage, shown=shown)
        first = self._first.setdefault((name, event.stage), event.step - 1)
        now = time.monotonic()
        if not self._bar.console.is_terminal and now - self._said[name] >= EVERY:
            self._said[name] = now
            left = event.seconds / (event.step - first) * (event.steps - event.step)
            at = f"step {event.step:,} of {event.steps:,}, loss {event.loss:.4f}"
            self.note(name, f"{event.stage}, {at}, about {seconds_text(left)} left of this stage")

    def note(self, name: str, text: str) -> None:
        """What a student's run is about, in words."""
        self._bar.console.print(Text(f"  {name}: {text}", style="dim"))

    def gate(self, name: str, gate: GateResult) -> None:
        """A stage has been measured."""
        mark = "[green]passed[/green]" if gate.passed else "[red]failed[/red]"
        self._bar.console.print(f"  {name} {gate} {mark}", highlight=False)
