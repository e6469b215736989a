"""thinkfast: distil a teacher into a student, sample many chains of thought, answer before a deadline.

The public names load on first use, because `import torch` alone costs more than `thinkfast --help` may take.

    import thinkfast
    print(thinkfast.solve("…", seconds=5, model="tiny-hybrid").answer)
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = ["LLM", "Chain", "Request", "SamplingParams", "__version__", "distill", "load_model", "solve", "solve_many"]

# public name -> (module, attribute). `distill` is the subpackage itself: a function of that name would be
# overwritten by the import system as soon as anything imports `thinkfast.distill.…`.
_EXPORTS: dict[str, tuple[str, str | None]] = {
    "LLM": ("thinkfast.engine.llm", "LLM"),
    "Chain": ("thinkfast.engine.request", "Chain"),
    "Request": ("thinkfast.engine.request", "Request"),
    "SamplingParams": ("thinkfast.engine.request", "SamplingParams"),
    "load_model": ("thinkfast.models.loading", "load_model"),
    "solve": ("thinkfast.judge.solve", "solve"),
    "solve_many": ("thinkfast.judge.solve", "solve_many"),
    "distill": ("thinkfast.distill", None),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'thinkfast' has no attribute {name!r}")
    module_name, attribute = _EXPORTS[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
