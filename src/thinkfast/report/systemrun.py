"""One system's run: units of chains through the engine, judged as they finish, under that system's own clock.

The clock starts when the model is loaded and warmed up (a full batch of a few tokens, thrown away) and counts
everything from there: prefill, sampling, answer extraction and checking. `report.evaluate` strings such runs together.

Usage: ``SystemRun(config, system, spec, problems, log, checker).go(on_plan, on_start, on_chain)``.
"""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from thinkfast.data.problems import Problem
from thinkfast.data.prompts import prompt_tokens
from thinkfast.engine.llm import LLM
from thinkfast.engine.plan import MemoryPlan
from thinkfast.engine.request import Chain, Request, SamplingParams
from thinkfast.errors import OutputError, ProblemError
from thinkfast.judge.answer import Equivalence, judge
from thinkfast.models.loading import load_as
from thinkfast.models.spec import ModelSpec
from thinkfast.models.tokenizer import Tokenizer
from thinkfast.report.evalconfig import EvalConfig, System
from thinkfast.report.live import load_times, run_live, save_times
from thinkfast.report.neighbours import Processors
from thinkfast.report.pacing import step_times
from thinkfast.report.samples import Row, SampleLog, Unit

WARM_UP_TOKENS = 8
FILLS = 4
"""Batches that a unit may fill at most: more would not fill them better, and a kill loses a unit."""


@dataclass(frozen=True, slots=True)
class SystemRecord:
    """What a system's run came to, as in `eval.json`.

    family: "teacher" (attention only), "hybrid" or "pure". complete_samples: samples that every problem has.
    cut: chains ended by the budget. ended: which cap ended the run, "n" or "seconds". processors, idle: how many it
    kept busy on average, and how many nobody used; None where that is not known, or a GPU did the work.
    """

    name: str
    model: str
    sha: str
    family: str
    parameters: int
    load_seconds: float
    wall_seconds: float
    prompt_tokens: int
    generated_tokens: int
    tokens_per_second: float
    samples: int
    complete_samples: int
    cut: int
    ended: str
    processors: float | None = None
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A system begins, or goes on: chains it will make at most (None: until the budget ends), and those it has.

    live: its clock, and the tokens generated since this start, chains that are not finished included; may be asked
    from another thread.
    """

    system: str
    chains: int | None
    done: int
    seconds: float
    live: Callable[[], tuple[float, int]] = field(compare=False)


class SystemRun:
    """One system's run, from its last committed unit to its end."""

    def __init__(
        self,
        config: EvalConfig,
        system: System,
        spec: ModelSpec,
        problems: list[Problem],
        log: SampleLog,
        checker: Equivalence | None,
    ) -> None:
        self.config, self.system, self.spec, self.problems = config, system, spec, problems
        self.log, self.checker = log, checker
        self.order = {problem.id: at for at, problem in enumerate(problems)}
        self.gold = {problem.id: problem.answer for problem in problems}
        self.problems_sha = hashlib.sha256(repr([(p.id, p.question, p.answer) for p in problems]).encode()).hexdigest()
        self.units = [unit for unit in log.units if unit.system == system.name]
        self.base = self.units[-1].seconds if self.units else 0.0
        self.size = min(config.unit, -(-FILLS * config.max_batch // len(problems)))
        self.started = 0.0

    def go(
        self,
        on_plan: Callable[[MemoryPlan], None] | None,
        on_start: Callable[[Start], None] | None,
        on_chain: Callable[[Row], None] | None,
    ) -> SystemRecord:
        config, count = self.config, len(self.problems)
        began = time.monotonic()
        loaded = load_as(self.system.model, config.dtype, config.device)
        self._same_inputs(loaded.sha)
        prompts = self._prompts(loaded.tokenizer)
        longest = max(map(len, prompts)) + config.max_tokens
        if self.spec.n_attention:
            longest = min(longest, self.spec.max_positions)
        rows = min(config.max_batch, count * min(self.size, config.n or self.size))
        llm = LLM(loaded, rows, longest, on_plan=on_plan)
        self._warm_up(llm, prompts, rows)
        load_seconds = time.monotonic() - began
        if on_start is not None:
            chains, warm = None if config.n is None else config.n * count, llm.stats.generated_tokens
            self.started = time.monotonic()

            def live() -> tuple[float, int]:
                return self.now(), llm.stats.generated_tokens - warm

            on_start(Start(self.system.name, chains, sum(unit.rows for unit in self.units), self.base, live))
        gc.collect()
        self.started, watch = time.monotonic(), Processors()
        while (size := self._next_size()) > 0:
            self._unit(llm, prompts, size, loaded.sha, on_chain)
        processors, idle = watch.shares()
        record = self._record(loaded.sha, load_seconds)
        if loaded.model.head_weight.device.type == "cpu":
            record = replace(record, processors=processors, idle=idle)
        if config.budgets:
            self._live(llm, prompts, record.complete_samples)
        return record

    def _live(self, llm: LLM, prompts: list[tuple[int, ...]], samples: int) -> None:
        """Every problem by itself at every budget, and what a step costs here, for the replay."""
        config, out = self.config, self.log.path.parent
        times, _ = load_times(out)
        if self.system.name not in times:
            times[self.system.name] = step_times(llm, prompts), llm.plan.max_batch
            save_times(out, times, {p.id: len(prompt) for p, prompt in zip(self.problems, prompts, strict=True)})
        run_live(
            out,
            self.system.name,
            llm,
            self.problems,
            config.budgets,
            n=max(1, samples),
            temperature=config.temperature,
            max_tokens=config.max_tokens,
            seed=config.seed,
            checker=self.checker,
        )

    def _same_inputs(self, model_sha: str) -> None:
        for unit in self.units:
            if (unit.model_sha, unit.problems_sha) != (model_sha, self.problems_sha):
                what = "weights" if unit.model_sha != model_sha else "problems"
                raise OutputError(
                    f"the {what} for {self.system.name!r} have changed since {self.log.path.parent} was begun",
                    remedy="choose a new folder with --out",
                )

    def now(self) -> float:
        """Seconds of this system's run, those before a kill included."""
        return self.base + time.monotonic() - self.started

    def _prompts(self, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
        prompts = []
        for problem in self.problems:
            prompt = tuple(prompt_tokens(tokenizer, problem.question, self.config.prompt))
            if self.spec.n_attention and len(prompt) >= self.spec.max_positions:
                raise ProblemError(
                    f"problem {problem.id!r} has {len(prompt)} tokens, and {self.system.name!r} was made for "
                    f"{self.spec.max_positions}",
                    remedy="leave the problem out, or evaluate a model with more positions",
                )
            prompts.append(prompt)
        return prompts

    def _params(self, n: int) -> SamplingParams:
        c = self.config
        return SamplingParams(n, c.temperature, c.top_p, c.top_k, c.min_p, c.max_tokens, seed=c.seed)

    def _warm_up(self, llm: LLM, prompts: list[tuple[int, ...]], rows: int) -> None:
        """Touch memory and kernels as a unit will: a full batch of a few tokens."""
        each = -(-rows // len(prompts))
        params = replace(self._params(each), max_tokens=WARM_UP_TOKENS, ignore_eos=True)
        llm.prepare(params)  # chains of a unit end one by one: batches of all sizes
        chains = list(llm.stream([Request(f"warm-up {i}", prompt, params) for i, prompt in enumerate(prompts)]))
        judge(chains[0].text, "1", self.checker)

    def _next_size(self) -> int:
        """Samples per problem of the next unit; 0 when the run is over."""
        c = self.config
        if (self.units and self.units[-1].final) or (c.seconds is not None and self.now() >= c.seconds):
            return 0
        return self.size if c.n is None else max(0, min(self.size, c.n - self._first()))

    def _first(self) -> int:
        return sum(unit.count for unit in self.units)

    def _unit(
        self, llm: LLM, prompts: list[tuple[int, ...]], size: int, sha: str, on_chain: Callable[[Row], None] | None
    ) -> None:
        first, params = self._first(), self._params(size)
        requests = [
            Request(problem.id, prompt, params, first) for problem, prompt in zip(self.problems, prompts, strict=True)
        ]
        prefilled, generated = llm.stats.prefill_tokens, llm.stats.generated_tokens
        budget = math.inf if self.config.seconds is None else self.config.seconds
        left = None if self.config.seconds is None else max(budget - self.now(), 1e-9)
        rows: list[Row] = []
        for chain in llm.stream(requests, left):
            row = self._row(chain)
            if row.finish not in ("deadline", "cancelled") and row.seconds <= budget:
                rows.append(row)
                if on_chain is not None:
                    on_chain(row)
        rows.sort(key=lambda row: (self.order[row.problem], row.sample))
        cut = size * len(requests) - len(rows)
        unit = Unit(
            system=self.system.name,
            first=first,
            count=size,
            rows=len(rows),
            cut=cut,
            seconds=self.now(),
            prompt_tokens=llm.stats.prefill_tokens - prefilled,
            generated_tokens=llm.stats.generated_tokens - generated,
            final=cut > 0,
            model_sha=sha,
            problems_sha=self.problems_sha,
        )
        self.log.commit(rows, unit)
        self.units.append(unit)

    def _row(self, chain: Chain) -> Row:
        # A chain that ran out of tokens has a last number too, but it has not answered: only a marked answer counts.
        verdict = judge(chain.text, self.gold[chain.request], self.checker, last_number=chain.finish == "stop")
        return Row(
            system=self.system.name,
            problem=chain.request,
            sample=chain.index,
            tokens=len(chain.tokens),
            text=chain.text,
            answer=verdict.answer,
            key=verdict.key,
            correct=verdict.correct,
            finish=chain.finish,
            logprob=_finite(chain.logprob),
            seconds=round(self.now(), 6),
            certainty=_finite(chain.certainty),
        )

    def _record(self, sha: str, load_seconds: float) -> SystemRecord:
        units = self.units
        wall, generated = (units[-1].seconds if units else 0.0), sum(unit.generated_tokens for unit in units)
        family = "hybrid" if self.spec.n_attention else "pure"
        return SystemRecord(
            name=self.system.name,
            model=self.system.model,
            sha=sha,
            family=family if self.spec.is_student else "teacher",
            parameters=self.spec.n_params,
            load_seconds=load_seconds,
            wall_seconds=wall,
            prompt_tokens=sum(unit.prompt_tokens for unit in units),
            generated_tokens=generated,
            tokens_per_second=generated / wall if wall else 0.0,
            samples=sum(unit.rows for unit in units),
            complete_samples=sum(unit.count for unit in units if not unit.cut),
            cut=sum(unit.cut for unit in units),
            ended="n" if self._first() == self.config.n and not units[-1].final else "seconds",
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
