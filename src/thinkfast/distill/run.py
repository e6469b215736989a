"""Run a recipe from its teacher, or from nothing, to a stock checkpoint; every step of it survives a kill.

A run's folder holds ``recipe.yaml`` (its claim on the folder), ``pool.npz`` and ``held_out.npz`` (the training text),
``stages/<i>-<name>/`` with losses, checkpoint and ``gate.json``, and at the end ``model/`` (the stock checkpoint) and
``results.json``. Run again, it goes on where it stopped; finished, it returns at once.

Usage: ``result = run_recipe(load_config(Recipe, "recipes/tiny-pure.yaml"), Path("runs/pure"))``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from thinkfast.config import claim, to_yaml
from thinkfast.data.corpus import Corpus
from thinkfast.data.pool import Pool
from thinkfast.data.problems import load_problems
from thinkfast.distill.gates import GateResult, check_gate, generated_accuracy, held_out_figure
from thinkfast.distill.recipe import Recipe, StageConfig
from thinkfast.distill.stages import Stage, make_stage
from thinkfast.distill.trainer import OnStep, save_state, train_stage
from thinkfast.errors import ConfigError, OutputError
from thinkfast.files import TEMP_PREFIX, atomic_dir, atomic_path, atomic_write
from thinkfast.models.checkpoint import save_checkpoint
from thinkfast.models.decoder import Decoder, init_weights
from thinkfast.models.loading import ASSETS, Loaded, load_model, require_device
from thinkfast.models.ragged import Ragged
from thinkfast.models.spec import ModelSpec
from thinkfast.models.transfer import TransferPlan, input_moments, plan_transfer, transfer
from thinkfast.provenance import provenance

MARKER = "recipe.yaml"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HELD_OUT_EXAMPLES = 128
CALIBRATION_BATCHES = 2


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run leaves: the checkpoint folder, one gate result a stage, and the seconds its stages took."""

    name: str
    model_dir: Path
    gates: tuple[GateResult, ...]
    seconds: float


OnGate = Callable[[GateResult], None]
OnNote = Callable[[str], None]  # what a run is about where it takes no steps, in words


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    device: str = "cpu",
    threads: Executor | None = None,
    on_step: OnStep | None = None,
    on_gate: OnGate | None = None,
    on_note: OnNote | None = None,
) -> RunResult:
    """Train or distill as ``recipe`` says, into ``out``; resumes, and returns at once where it is finished.

    The parts of a batch run on ``threads``, by default on threads of its own. ``on_note`` gets words for what takes
    time without being a step, and for the step that a resumed run goes on from.

    Errors: ConfigError for a recipe out of range, OutputError for a folder of another recipe, ModelError for an
    unusable teacher, GateError with the figure where a stage misses its gate.
    """
    text = to_yaml(recipe)
    require_device(device)
    if (done := _finished(recipe, text, out)) is not None:
        return done
    check_recipe(recipe)
    # The teacher and the plan before the claim: a recipe that cannot run leaves no folder behind.
    teacher = None if recipe.new_teacher is not None else load_model(recipe.teacher, device=device)
    plan = None if teacher is None else _plan(recipe, teacher)
    claim(recipe, out, MARKER, "a run of another recipe")
    if teacher is not None:
        _same_teacher(out / "teacher.sha256", teacher)
    return _Run(recipe, teacher, plan, out, torch.device(device), threads, on_step, on_gate, on_note).go()


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that could not run for its numbers or its problems, before anything is written.

    Errors: ConfigError for a number out of range; ProblemError, InputError for problems that are not there.
    """
    try:
        for part in (*recipe.stages, recipe, recipe.new_teacher):
            if part is not None:
                part.validate()
    except ValueError as error:
        raise ConfigError(str(error), remedy="change the value named above") from error
    data = recipe.data
    load_problems(data.held_out, 1)
    load_problems(data.problems, 1)
    for level in data.difficulties or ():
        if data.problems.startswith("tiny_"):
            load_problems(f"{data.problems.partition(':')[0]}:{level}", 1)


def _same_teacher(path: Path, teacher: Loaded) -> None:
    """Half a run from one teacher and half from another would fit neither: remember whose run this is."""
    if not path.is_file():
        atomic_write(path, teacher.sha + "\n")
    elif path.read_text().strip() != teacher.sha:
        raise OutputError(
            f"{path.parent} was begun with other weights of {teacher.name}",
            remedy="choose another --out, or put the old weights back",
        )


def _plan(recipe: Recipe, teacher: Loaded) -> TransferPlan:
    return plan_transfer(teacher.spec, teacher.spec.as_student(recipe.keep, recipe.d_state))


def _finished(recipe: Recipe, text: str, out: Path) -> RunResult | None:
    path, marker = out / "results.json", out / MARKER
    if not (path.is_file() and marker.is_file() and marker.read_text() == text and (out / "model").is_dir()):
        return None
    try:
        results = json.loads(path.read_text())
        gates = tuple(GateResult(**row) for row in results["gates"])
        return RunResult(recipe.name, out / "model", gates, float(results["seconds"]))
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is damaged: {error}", remedy="remove it and run the same command: the stages are kept"
        ) from error


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        teacher: Loaded | None,
        plan: TransferPlan | None,
        out: Path,
        device: torch.device,
        threads: Executor | None,
        on_step: OnStep | None,
        on_gate: OnGate | None,
        on_note: OnNote | None,
    ) -> None:
        self.recipe, self.teacher, self.plan, self.out, self.device = recipe, teacher, plan, out, device
        self.threads, self.on_step, self.on_gate, self.on_note = threads, on_step, on_gate, on_note
        self.tokenizer_dir = ASSETS / "tiny" if self.teacher is None else self.teacher.path
        self.pool = self._pool("pool.npz", recipe.data.problems, recipe.data.pool)
        self.held_out = self._pool("held_out.npz", recipe.data.held_out, HELD_OUT_EXAMPLES)

    def _pool(self, name: str, problems: str, count: int) -> Pool:
        path = self.out / name
        if path.is_file():
            return Pool.load(path)
        self._note(f"making {name}: {count:,} examples of {problems}")
        began = time.monotonic()
        name_of_set, _, level = problems.partition(":")
        if name_of_set.startswith("tiny_"):
            load_problems(problems, 1)  # refuses a split or a level that there is not
            split = name_of_set.removeprefix("tiny_")
            levels = (int(level),) if level else self.recipe.data.difficulties or None
            pool = Pool.procedural(split, count, tokenizer_dir=self.tokenizer_dir, difficulties=levels)
        else:
            from thinkfast.models.tokenizer import Tokenizer

            pairs = [(p.question, p.solution) for p in load_problems(problems, count) if p.solution]
            pool = Pool.texts(pairs, Tokenizer.from_dir(self.tokenizer_dir))
        with atomic_path(path) as temp:
            pool.save(temp)
        self._note(f"{name} is made: {len(pool):,} examples in {time.monotonic() - began:.0f} s")
        return pool

    def _note(self, text: str) -> None:
        if self.on_note is not None:
            self.on_note(text)

    def _begin(self, config: StageConfig, resumed: bool, done: int) -> None:
        if resumed or done:
            self._note(f"going on with {config.name} after {done:,} of {config.steps:,} steps")

    def _corpus(self, config: StageConfig, stage: int) -> Corpus:
        data = self.recipe.data
        seed = self.recipe.seed * 100 + stage
        return Corpus(self.pool, tokens_per_batch=config.batch_tokens, seed=seed, bucket=data.bucket)

    def _student(self) -> Decoder:
        recipe = self.recipe
        if (sizes := recipe.new_teacher) is not None:
            from thinkfast.models.tokenizer import Tokenizer

            spec = ModelSpec(
                vocab_size=Tokenizer.from_dir(self.tokenizer_dir).vocab_size,
                d_model=sizes.d_model,
                n_heads=sizes.heads,
                n_kv_heads=sizes.kv_heads,
                head_dim=sizes.d_model // sizes.heads,
                d_ff=sizes.d_ff,
                layer_types=("attention",) * sizes.layers,
                rope_theta=sizes.rope_theta,
                max_positions=sizes.max_positions,
            )
            model = Decoder(spec)
            init_weights(model, recipe.seed)
            return model.to(self.device)
        assert self.teacher is not None  # noqa: S101 - run_recipe loads and plans where there are no new sizes
        assert self.plan is not None  # noqa: S101
        teacher = self.teacher.model
        corpus = self._corpus(recipe.stages[0], 0)
        count = min(CALIBRATION_BATCHES, corpus.batches_per_epoch)
        batches = [corpus.batch(i).to(self.device) for i in range(count)]
        moments = input_moments(teacher, [(b.tokens, Ragged(b.lens)) for b in batches])
        return transfer(teacher, self.plan, moments, recipe.seed)

    def go(self) -> RunResult:
        student = self._student()
        gates: list[GateResult] = []
        spent = 0.0
        previous: Path | None = None
        for i, config in enumerate(self.recipe.stages):
            folder = self.out / "stages" / f"{i}-{config.name}"
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{TEMP_PREFIX}*"):  # a checkpoint that a kill left half-written
                leftover.unlink()
            gate_path, weights = folder / "gate.json", folder / "weights.pt"
            if gate_path.is_file():
                row = json.loads(gate_path.read_text())
                spent += float(row.pop("seconds"))
                gates.append(GateResult(**row))
                previous = weights
                (folder / f"{config.name}.pt").unlink(missing_ok=True)
                continue
            self._go_on_from(previous, student)
            begin = partial(self._begin, config, previous is not None)
            previous = None
            began = time.monotonic()
            stage = make_stage(config, student, None if self.teacher is None else self.teacher.model)
            train_stage(
                stage,
                student,
                self._corpus(config, i),
                folder,
                save_every=self.recipe.save_every,
                bf16=self.recipe.bf16,
                parts=self.recipe.parts,
                threads=self.threads,
                on_begin=begin,
                on_step=self.on_step,
            )
            result = self._measure(config, stage, student)
            if self.on_gate is not None:
                self.on_gate(result)
            check_gate(config, result)
            save_state(weights, student.state_dict())
            seconds = time.monotonic() - began
            atomic_write(gate_path, json.dumps({**asdict(result), "seconds": seconds}) + "\n")
            (folder / f"{config.name}.pt").unlink(missing_ok=True)
            gates.append(result)
            spent += seconds
        self._go_on_from(previous, student)
        self._finish(student, gates, spent)
        return RunResult(self.recipe.name, self.out / "model", tuple(gates), spent)

    def _go_on_from(self, weights: Path | None, student: Decoder) -> None:
        """Load what an earlier process left after a stage; None: the student is that far already."""
        if weights is not None:
            student.load_state_dict(torch.load(weights, map_location=self.device, weights_only=True))

    def _rounded(self, student: Decoder) -> Loaded:
        """The student as it will be saved: weights rounded to the checkpoint's dtype, computed in fp32."""
        model = Decoder(student.spec).to(self.device).requires_grad_(False).eval()
        dtype = DTYPES[self.recipe.student_dtype]
        model.load_state_dict({name: t.to(dtype).float() for name, t in student.state_dict().items()})
        from thinkfast.models.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_dir(self.tokenizer_dir) if self.teacher is None else self.teacher.tokenizer
        return Loaded(self.recipe.name, self.out, student.spec, model, tokenizer, "")

    def _measure(self, config: StageConfig, stage: Stage, student: Decoder) -> GateResult:
        if config.name not in ("sft", "pretrain"):
            held_out = Corpus(self.held_out, tokens_per_batch=config.batch_tokens, seed=0)
            value = held_out_figure(stage, held_out, self.device)
            return GateResult(config.name, stage.figure, value, config.gate, stage.higher_is_better)
        problems = load_problems(self.recipe.data.held_out, self.recipe.eval_problems)
        value = generated_accuracy(self._rounded(student), problems)
        figure = stage.figure
        if self.teacher is not None:
            # A student's accuracy means little by itself: the gate is its share of the teacher's.
            value /= max(generated_accuracy(self.teacher, problems), 1 / len(problems))
            figure = "greedy accuracy, share of the teacher's"
        return GateResult(config.name, figure, value, config.gate, stage.higher_is_better)

    def _finish(self, student: Decoder, gates: list[GateResult], seconds: float) -> None:
        rounded = self._rounded(student)
        with atomic_dir(self.out / "model") as folder:
            save_checkpoint(rounded.model, self.tokenizer_dir, folder, DTYPES[self.recipe.student_dtype])
        results: dict[str, Any] = {
            "name": self.recipe.name,
            "teacher": None if self.teacher is None else {"name": self.teacher.name, "sha256": self.teacher.sha},
            "parameters": student.spec.n_params,
            "gates": [asdict(g) for g in gates],
            "seconds": seconds,
            "losses": {
                f"{i}-{config.name}": [
                    json.loads(line)
                    for line in (self.out / "stages" / f"{i}-{config.name}" / f"{config.name}.losses.jsonl")
                    .read_text()
                    .splitlines()
                ]
                for i, config in enumerate(self.recipe.stages)
            },
            "provenance": provenance(self.recipe.seed),
        }
        atomic_write(self.out / "results.json", json.dumps(results) + "\n")
