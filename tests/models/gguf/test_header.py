"""Damaged files: whatever is cut or overwritten, the error is ours, it names the file, and it comes at once."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import pytest
from gguf_files import GGUFParts, parts_of, random_model
from hypothesis import given
from hypothesis import strategies as st

from thinkfast.errors import ModelError
from thinkfast.models.gguf.header import read_gguf


@pytest.fixture(scope="module")
def parts() -> GGUFParts:
    return parts_of(random_model("llama"))


@pytest.fixture(scope="module")
def whole(parts: GGUFParts, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return parts.write(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


def header_size(data: bytes, folder: Path) -> int:
    (folder / "m.gguf").write_bytes(data)
    return min(entry.start for entry in read_gguf(folder / "m.gguf").tensors.values())


def test_metadata_and_places(whole: bytes, parts: GGUFParts, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(whole)
    file = read_gguf(tmp_path / "m.gguf")
    for key, value in parts.metadata.items():
        assert file.metadata[key] == (pytest.approx(value) if isinstance(value, float) else value)
    assert {name: entry.shape for name, entry in file.tensors.items()} == {
        name: tensor.shape for name, tensor in parts.tensors.items()
    }
    entry = file.tensors["blk.1.ffn_up.weight"]
    assert whole[entry.start : entry.end] == parts.tensors["blk.1.ffn_up.weight"].tobytes()
    assert entry.bits == 32


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.001, 0.01, 0.02, 0.1, 0.5, 0.999])
def test_truncated(keep: float, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelError, match=r"cut\.gguf is (truncated or damaged|empty|not a GGUF file)"):
        read_gguf(path)


def test_a_cut_among_the_weights_names_the_tensor(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"truncated or damaged.*reading tensor '.+'"):
        read_gguf(path)


@given(st.data())
def test_noise_in_the_header_never_hangs_or_raises_anything_else(
    whole: bytes, parts: GGUFParts, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        size = header_size(whole, Path(folder))
        at = data.draw(st.integers(0, size - 8))
        noise = data.draw(st.binary(min_size=1, max_size=8))
        path = Path(folder) / "noise.gguf"
        path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
        with contextlib.suppress(ModelError):
            read_gguf(path)


def test_a_length_beyond_the_file_is_not_believed(whole: bytes, tmp_path: Path) -> None:
    at = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8  # behind the two type numbers
    path = tmp_path / "long.gguf"
    path.write_bytes(whole[:at] + struct.pack("<Q", 2**62) + whole[at + 8 :])
    with pytest.raises(ModelError, match=r"an array of 4,611,686,018,427,387,904 values.*tokenizer\.ggml\.tokens"):
        read_gguf(path)


def test_other_files_and_versions(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for data, said in (
        (b"PK\x03\x04" + whole[4:], "is not a GGUF file"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], "is GGUF version 1"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "big-endian"),
        (b"", "is empty"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=said):
            read_gguf(path)


def test_one_part_of_several(parts: GGUFParts, tmp_path: Path) -> None:
    path = GGUFParts(parts.metadata | {"split.count": 3}, parts.tensors).write(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(ModelError, match="one of 3 parts") as caught:
        read_gguf(path)
    assert "--merge" in caught.value.remedy
