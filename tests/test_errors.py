from __future__ import annotations

import pickle

import pytest

from thinkfast import errors

KINDS = ["InputError", "ModelError", "ConfigError", "ProblemError", "OutputError", "GateError", "ParityError"]


@pytest.mark.parametrize("name", [*KINDS, "CapacityError"])
def test_every_error_carries_a_remedy_and_survives_pickle(name: str) -> None:
    kind = getattr(errors, name)
    error = pickle.loads(pickle.dumps(kind("no such model 'x'", remedy="use tiny")))
    assert type(error) is kind
    assert issubclass(kind, errors.ThinkfastError)
    assert str(error) == "no such model 'x'\n  remedy: use tiny"
    assert (error.message, error.remedy) == ("no such model 'x'", "use tiny")


def test_a_remedy_is_required() -> None:
    with pytest.raises(TypeError):
        errors.InputError("bad")  # type: ignore[call-arg]
