import gzip
from pathlib import Path

import numpy as np
import pytest

from p2pnn.data.blobs import BlobStore
from p2pnn.data.csv import open_csv
from p2pnn.data.fit import Feature
from p2pnn.data.ingest import ingest
from p2pnn.data.table import Source
from p2pnn.errors import DataError

FLOWERS = "length,kind,width\n1.5,rose,2\n3,lily,-4e-1\n\n5,rose, 6 \n"


def written(tmp_path: Path, text: str, name: str = "d.csv") -> Path:
    (tmp_path / name).write_text(text, newline="")
    return tmp_path / name


def read(source: Source, name: str, rows_max: int = 2) -> list[object]:
    return np.concatenate([block[name] for block in source.train.blocks(rows_max, [name])]).tolist()  # type: ignore[no-any-return]


def test_features_and_text_labels(tmp_path: Path) -> None:
    source = open_csv(written(tmp_path, FLOWERS), "kind")
    assert source.name == "d"
    assert source.classes == ("lily", "rose")
    assert source.columns["x"].shape == (2,)
    assert source.columns["x"].features
    assert read(source, "y") == [1, 0, 1]
    np.testing.assert_array_equal(read(source, "x"), np.array([[1.5, 2], [3, -0.4], [5, 6]], np.float32))
    assert source.train.where("x", 2, (1,)) == f"{tmp_path}/d.csv, line 5, column width"
    assert source.train.where("y", 0, ()) == f"{tmp_path}/d.csv, line 2, column kind"


def test_classes_of_a_trained_model_number_the_labels(tmp_path: Path) -> None:
    path = written(tmp_path, FLOWERS)
    assert read(open_csv(path, "kind", ("rose", "iris", "lily")), "y") == [0, 2, 0]
    with pytest.raises(DataError, match=r"line 3, column kind: 'lily' is none of the 1 known classes \(rose\)"):
        read(open_csv(path, "kind", ("rose",)), "y")


@pytest.mark.parametrize(
    ("labels", "dtype", "classes"),
    [
        (["0", "7", "-1"], "int64", ()),
        (["0", "0.5", "1e3"], "float32", ()),
        (["0", "one", "2"], "int64", ("0", "2", "one")),
        (["99999999999999999999", "1", "2"], "float32", ()),
    ],
)
def test_what_labels_are(tmp_path: Path, labels: list[str], dtype: str, classes: tuple[str, ...]) -> None:
    source = open_csv(written(tmp_path, "a,y\n" + "".join(f"1,{label}\n" for label in labels)), "y")
    assert source.columns["y"].dtype == dtype
    assert source.classes == classes
    if not classes:
        np.testing.assert_allclose(read(source, "y"), [float(label) for label in labels], rtol=1e-6)


def test_quotes_delimiters_marks_and_gzip(tmp_path: Path) -> None:
    plain = written(tmp_path, '\ufeff"a b";label\r\n1;"x;y"\r\n2;z\r\n')
    source = open_csv(plain, "label")
    assert source.classes == ("x;y", "z")
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert read(open_csv(tmp_path / "d.csv.gz", "label"), "x") == read(source, "x") == [[1], [2]]


def test_without_a_label(tmp_path: Path) -> None:
    assert list(open_csv(written(tmp_path, "a,b\n1,2\n")).columns) == ["x"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b,y\n1,2,p\n1,,q\n", "line 3, column b: the cell is empty"),
        ("a,b,y\n1,2,p\n1,2a,q\n", "line 3, column b: '2a' is not a number"),
        ("a,b,y\n1,red,p\n", "line 2, column b: 'red' is not a number; if it is what to learn, name it with --label"),
        ("a,b,y\n1,nan,p\n", "line 2, column b: 'nan' is not a number"),
        ("a,b,y\n1,1_000,p\n", "line 2, column b: '1_000' is not a number"),
        ("a,b,y\n1,inf,p\n", "line 2, column b: 'inf' is not a number"),
        ("a,b,y\n1,2,\n", "line 2, column y: the label is missing"),
        ("a,b,y\n1,2\n", "line 2: 2 cells, but the header names 3 columns"),
        ("a,b,y\n1,2,3,4\n", "line 2: 4 cells"),
        ("1,2,3\n1,2,3\n", "line 1 holds numbers; the first line must name the columns"),
        ("y,y\n1,2\n", "line 1: the column name 'y' is empty or stands twice"),
        ("a,yy\n1,2\n", "has no column 'y'; did you mean 'yy'"),
        ("a,b\n1,2\n", "has no column 'y'; it has a, b"),
        ("a,y\n", "holds no data"),
        ("", "holds no data"),
        ('a,y\n1,"2\n', "cannot be read as CSV"),
    ],
)
def test_what_is_refused_and_where(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        read(open_csv(written(tmp_path, text), "y"), "x")
    assert "d.csv" in str(caught.value)


def test_wrong_encoding(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read as CSV"):
        open_csv(tmp_path / "d.csv", "y")


def test_a_file_that_grows_meanwhile(tmp_path: Path) -> None:
    path = written(tmp_path, "a,y\n1,2\n")
    source = open_csv(path, "y")
    with path.open("a") as file:
        file.write("3,4\n")
    with pytest.raises(DataError, match="was changed while it was read"):
        read(source, "x")


def test_empty_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    source = open_csv(written(tmp_path, "\n  \na;y\n1;2\n\n"), "y")
    assert (read(source, "x"), read(source, "y")) == ([[1]], [2])


def test_what_float32_cannot_hold_is_refused_without_a_warning(tmp_path: Path) -> None:
    source = open_csv(written(tmp_path, "a,y\n1e39,1\n"), "y")
    features = (Feature("f", "x", (1,)),)
    with pytest.raises(DataError, match="line 2, column a: the value is infinite, or too large for float32"):
        ingest(source, features, BlobStore(tmp_path).put, test_fraction=0.0)


def test_a_label_may_hold_what_a_number_may_not(tmp_path: Path) -> None:
    assert open_csv(written(tmp_path, "a,y\n1,1_000\n2,7\n"), "y").classes == ("1_000", "7")
    assert read(open_csv(written(tmp_path, "a,y\n1,1_000\n2,7\n"), "y"), "x") == [[1], [2]]
