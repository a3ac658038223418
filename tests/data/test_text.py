import gzip
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data import batches, text
from p2pnn.data.blobs import BlobStore
from p2pnn.data.fit import Feature
from p2pnn.data.ingest import ingest
from p2pnn.data.table import Source
from p2pnn.errors import DataError

SPEECH = "Wer reitet so spät durch Nacht und Wind?\nEs ist der Vater mit seinem Kind;\n" * 9


def written(path: Path, content: str = SPEECH) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def read(source: Source, rows_max: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(source.train.blocks(rows_max, ["x", "y"]))
    return np.concatenate([block["x"] for block in blocks]), np.concatenate([block["y"] for block in blocks])


def test_rows_lie_end_to_end_and_labels_are_one_further(tmp_path: Path) -> None:
    source = text.open_text(written(tmp_path / "goethe.txt"), 10)
    assert (source.name, source.ordered, source.test, source.validation) == ("goethe", True, None, None)
    assert source.classes == tuple(sorted(set(SPEECH)))
    assert source.class_count() == len(source.classes)
    x, y = read(source)
    assert x.dtype == y.dtype == np.uint8
    assert x.shape == y.shape == ((len(SPEECH) - 1) // 10, 10)
    characters = np.array(source.classes)
    assert "".join(characters[x.reshape(-1)]) == SPEECH[: x.size]
    assert "".join(characters[y.reshape(-1)]) == SPEECH[1 : x.size + 1]
    assert source.train.where("y", 2, (3,)) == f"{tmp_path / 'goethe.txt'}, character 25"


@pytest.mark.parametrize("piece", [1, 7, 64])
@pytest.mark.parametrize("rows_max", [1, 3, 1000])
def test_the_text_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, rows_max: int) -> None:
    source = text.open_text(written(tmp_path / "a.txt"), 16)
    whole = read(source)
    monkeypatch.setattr(text, "PIECE_CHARS", piece)
    again = text.open_text(tmp_path / "a.txt", 16)
    for found, wanted in zip(read(again, rows_max), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert max(len(block["x"]) for block in again.train.blocks(rows_max, ["x"])) <= rows_max


@pytest.mark.parametrize("characters", [5, 8, 9])
def test_exactly_one_row(tmp_path: Path, characters: int) -> None:
    source = text.open_text(written(tmp_path / "a.txt", "abcdefghi"[:characters]), 4)
    assert source.train.rows == (characters - 1) // 4
    assert read(source)[0].shape == (source.train.rows, 4)


def test_many_characters_take_two_bytes(tmp_path: Path) -> None:
    content = "".join(chr(0x4E00 + number) for number in range(300)) * 2
    source = text.open_text(written(tmp_path / "a.txt", content), 100)
    x, _ = read(source)
    assert x.dtype == np.uint16
    assert x[2].tolist() == list(range(200, 300))


def test_line_ends_and_the_mark_at_the_beginning_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffeins\r\nzwei\r\n".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"eins\nzwei\n"))
    first, second = text.open_text(tmp_path / "a.txt", 3), text.open_text(tmp_path / "b.txt.gz", 3)
    assert first.classes == second.classes == ("\n", "e", "i", "n", "s", "w", "z")
    np.testing.assert_array_equal(read(first)[0], read(second)[0])
    assert second.name == "b"


def test_a_folder_has_one_vocabulary(tmp_path: Path) -> None:
    written(tmp_path / "train.txt", "abcabcabc")
    written(tmp_path / "val.txt", "dddd")
    assert text.is_folder(tmp_path)
    source = text.open_folder(tmp_path, 2)
    assert source.classes == ("a", "b", "c", "d")
    assert source.test is None
    assert source.validation is not None
    assert source.validation.rows == 1
    written(tmp_path / "test.txt", "abcd")
    assert text.open_folder(tmp_path, 2).test is not None
    assert not text.is_folder(tmp_path / "train.txt")


def test_splits_are_stretches_and_no_target_is_in_two(tmp_path: Path) -> None:
    source = text.open_text(written(tmp_path / "a.txt"), 8)
    features = (Feature("tokens", "x", (8,), whole=True), Feature("next", "y", (8,), 99, target=True, whole=True))
    store = BlobStore(tmp_path / "blobs")
    data = ingest(source, features, store.put, seed=5, validation_fraction=0.1, test_fraction=0.05)
    assert data.validation is not None
    assert data.test is not None
    orders = [batches.split_order(split).tolist() for split in (data.train, data.validation, data.test)]
    assert [row for order in orders for row in order] == list(range(source.train.rows))
    assert data.classes == source.classes
    assert data.scaling == {}
    epoch = batches.epoch_order(data.train, 5, 0)
    assert sorted(epoch) == orders[0]
    assert epoch.tolist() != orders[0]
    rows = np.empty((data.train.rows, 8), np.int64)
    batches.SplitReader(data.train, "y", store).rows(epoch, rows)
    np.testing.assert_array_equal(rows, read(source)[1][epoch])


def test_tokens_by_a_models_own_vocabulary(tmp_path: Path) -> None:
    assert text.tokens("cab", ("b", "a", "c")).tolist() == [2, 1, 0]
    assert text.tokens("", ("a",)).tolist() == []
    with pytest.raises(DataError, match="'d', 'é' are not among the 3 characters that the model knows"):
        text.tokens("édéd", ("b", "a", "c"))
    with pytest.raises(DataError, match="'x' is not among the 0"):
        text.tokens("x", ())
    source = text.open_text(written(tmp_path / "a.txt", "abba"), 3, ("z", "b", "a"))
    assert source.classes == ("z", "b", "a")
    assert read(source)[0].tolist() == [[2, 1, 1]]


@pytest.mark.parametrize(
    ("content", "given", "sentence"),
    [
        (b"abc", {}, "holds 3 characters, but a row of context 128 takes 129; .*--context"),
        (b"abc\xe9", {}, "is not UTF-8 text: its byte 3 is 0xe9"),
        (b"abcdef", {"vocabulary": ("a", "b", "c")}, "'d', 'e', 'f' are not among the 3 characters"),
        (b"abcdef", {"vocabulary": ("rose", "tulip")}, "classes are 'rose', 'tulip' …: it was not trained on text"),
        (b"abc", {"context": -1}, "context = -1"),
    ],
)
def test_what_is_no_text_to_learn(tmp_path: Path, content: bytes, given: dict, sentence: str) -> None:  # type: ignore[type-arg]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        text.open_text(tmp_path / "a.txt", **given)


def test_too_many_characters_are_no_text(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "".join(chr(0x4E00 + number) for number in range(text.VOCABULARY_MAX + 1)))
    with pytest.raises(DataError, match="more than 8,192 different characters"):
        text.open_text(tmp_path / "a.txt", 10)


@pytest.mark.parametrize("later", ["ab" * 50, "ab" * 200, "abx" * 100])
def test_a_text_that_changes_while_it_is_read(tmp_path: Path, later: str) -> None:
    source = text.open_text(written(tmp_path / "a.txt", "ab" * 150), 10)
    written(tmp_path / "a.txt", later)
    with pytest.raises(DataError, match="was changed while it was read"):
        read(source)


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 1000)[:-9])
    with pytest.raises(DataError, match=r"a\.txt\.gz cannot be read"):
        text.open_text(tmp_path / "a.txt.gz", 4)


@pytest.mark.parametrize("piece", [3, 7, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_the_first_wrong_byte_is_counted_from_the_beginning(
    tmp_path: Path, piece: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "PIECE_CHARS", piece)
    content = "größer €".encode() * 2 + b"ab\xe2\x28"
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=rf"its byte {len(content) - 2} is 0xe2"):
        text.open_text(path)


def test_a_text_is_known_by_its_name_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "LOUD.TXT").write_text("abc" * 100)
    assert text.is_text(tmp_path / "LOUD.TXT")
    assert text.open_text(tmp_path / "LOUD.TXT", 8).name == "LOUD"
