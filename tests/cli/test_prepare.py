"""From a request to a spec: what is read, checked and said before anything starts."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pnn import nn
from p2pnn.cli import prepare, submit
from p2pnn.cli.jobfile import resolve
from p2pnn.cli.request import Request
from p2pnn.cli.results import to_safetensors
from p2pnn.data.batches import split_order
from p2pnn.errors import CheckpointError, DataError, ModelError, UsageError
from p2pnn.types import BlobId
from tests.cli.made import flower_data, flowers, saved_run, tensors_of
from tests.model.test_text import speller


def asked(folder: Path, **settings: Any) -> Request:
    return resolve({"data": str(flower_data(folder)), "batch_size": 20, **settings})


def prepared(folder: Path, **settings: Any) -> submit.Prepared:
    return prepare.training(asked(folder, **settings), model=flowers())


def test_the_splits_hold_every_row_once(tmp_path: Path) -> None:
    spec = prepared(tmp_path, validation_fraction=0.2).spec
    assert spec.train is not None
    assert spec.validation is not None
    assert spec.test is not None
    places = sorted((split.start, split.stop) for split in (spec.train, spec.validation, spec.test))
    assert [place[0] for place in places] == [0, *(place[1] for place in places[:-1])]
    assert places[-1][1] == spec.train.dataset.rows == 50


def test_patience_keeps_rows_apart_to_look_at(tmp_path: Path) -> None:
    assert prepared(tmp_path).spec.validation is None
    patient = prepared(tmp_path, patience=3).spec
    assert patient.validation is not None
    assert patient.validation.rows == 4


def test_test_data_of_its_own(tmp_path: Path) -> None:
    arrays = {"image": np.ones((30, 3), np.float32), "label": np.zeros(30, np.int64)}
    request = Request(train=msgspec.convert({"batch_size": 10, "micro_batches": 2}, type(Request().train)))
    apart = prepare.training(request, model=flowers(), arrays=arrays, test=str(flower_data(tmp_path)))
    assert apart.spec.train is not None
    assert apart.spec.test is not None
    assert (apart.spec.train.rows, apart.spec.test.rows) == (30, 50)


def test_the_name_is_one_for_folders(tmp_path: Path) -> None:
    assert prepared(tmp_path).name == "flowers"
    assert prepared(tmp_path, name="../my flowers!").spec.name == "my-flowers"
    assert prepared(tmp_path, name="…").spec.name == "job"


def test_a_network_of_the_zoo_takes_the_shape_and_classes_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("width,height,kind\n" + "1,2,rose\n3,5,tulip\n" * 20)
    spec = prepare.training(
        resolve({"model": "mlp", "data": str(tmp_path / "two.csv"), "label": "kind", "batch_size": 16})
    ).spec
    assert spec.graph.classes == ("rose", "tulip")
    assert {value.name: value.shape for value in spec.graph.inputs} == {"image": (-1, 2), "label": (-1,)}
    shapes = {p.name: p.shape for p in spec.graph.parameters}
    assert shapes["head/bias"] == (2,)


def image_folder(folder: Path, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Path:
    from PIL import Image

    for number in range(12):
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 20 * number).save(place / f"{number}.png")
    return folder


def test_a_folder_of_images_trains_and_is_predicted_as_it_was_trained(tmp_path: Path) -> None:
    words = {"model": "mlp", "data": str(image_folder(tmp_path / "pets")), "batch_size": 4, "image_size": "3x2"}
    found = prepare.training(resolve(words))
    assert found.spec.graph.classes == ("cat", "dog")
    assert {value.name: value.shape for value in found.spec.graph.inputs}["image"] == (-1, 3, 3, 2)
    assert found.spec.train is not None
    assert (found.spec.train.rows, found.spec.train.dataset.columns[0].dtype) == (9, "uint8")
    run = saved_run(tmp_path / "run", found.spec.graph)
    (run / "job.toml").write_text(found.spec.request)
    other = image_folder(tmp_path / "gray", (7, 9), "L")
    rows = evaluation(run, other, kind="predict").spec.test
    assert rows is not None
    assert rows.dataset.columns[0].shape == (3, 3, 2)
    one = evaluation(run, other / "dog" / "3.png", kind="predict").spec.test
    assert one is not None
    assert one.rows == 1
    assert evaluation(run, tmp_path / "pets").remarks == [
        "measuring the 3 test rows of pets, on which this run was not trained"
    ]


def test_images_without_classes_are_nothing_to_learn(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "pets") / "cat"
    with pytest.raises(DataError, match=r"holds images without classes.*subfolder that is named as the class"):
        prepare.training(resolve({"model": "resnet8", "data": str(folder)}))


def test_a_text_makes_the_networks_vocabulary_and_its_end_is_validated_on(tmp_path: Path) -> None:
    (tmp_path / "speech.txt").write_text("Wer reitet so spät durch Nacht und Wind?\n" * 40)
    words = {"model": "char-gpt", "data": str(tmp_path / "speech.txt"), "context": 8, "batch_size": 20}
    found = prepare.training(resolve({**words, "arguments": {"layers": 1, "width": 8, "heads": 2}}))
    spec = found.spec
    assert spec.graph.classes == tuple(sorted(set("Wer reitet so spät durch Nacht und Wind?\n")))
    assert {value.name: value.shape for value in spec.graph.inputs} == {"tokens": (-1, 8), "next": (-1, 8)}
    assert spec.inputs == {"tokens": "x", "next": "y"}
    assert spec.graph.scaling == {}
    assert spec.train is not None
    assert spec.validation is not None
    rows = (41 * 40 - 1) // 8
    assert (spec.train.start, spec.train.seed, spec.validation.stop, spec.validation.seed) == (0, -1, rows, -1)
    assert spec.train.stop == spec.validation.start == rows - -(-rows // 10)
    assert spec.test is None
    run = saved_run(tmp_path / "run", spec.graph)
    (run / "job.toml").write_text(spec.request)
    measured = evaluation(run, tmp_path / "speech.txt")
    assert measured.spec.test == msgspec.structs.replace(
        spec.validation, dataset=msgspec.structs.replace(spec.validation.dataset, classes=())
    )
    assert measured.remarks == [
        f"measuring the {spec.validation.rows} validation rows of speech, on which this run was not trained"
    ]
    again = prepare.training(resolve({}, run / "job.toml")).spec
    assert again.graph == spec.graph
    assert again.train == spec.train
    (tmp_path / "other.txt").write_text("Wer? Ich!\n" * 9)
    with pytest.raises(DataError, match="'!', 'I' are not among the"):
        evaluation(run, tmp_path / "other.txt")


def test_a_models_own_context_cuts_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n" * 100)
    words = resolve({"data": str(tmp_path / "a.txt"), "batch_size": 4})
    found = prepare.training(words, model=speller(6, ())).spec
    assert found.train is not None
    assert found.train.dataset.columns[0].shape == (6,)
    assert found.graph.classes == ("\n", "a", "b")
    tokens = nn.Input("tokens", (6,), dtype="int64")
    small = nn.Embedding(2, 3)(tokens)
    model = nn.Model({"s": small}, nn.cross_entropy(small, nn.Input("next", (6,), dtype="int64")))
    with pytest.raises(DataError, match="the number is 2, but the model has 2 classes"):
        prepare.training(words, model=model)


def test_what_cannot_be_trained_or_watched(tmp_path: Path) -> None:
    image = nn.Input("image", (3,))
    model = nn.Model(outputs={"y": nn.Linear(2, name="head")(image)})
    with pytest.raises(ModelError, match="has no loss"):
        prepare.training(asked(tmp_path), model=model)
    with pytest.raises(UsageError, match=r"monitor names no metric of the model.*accurracy.*accuracy"):
        prepared(tmp_path, monitor="accurracy", validation_fraction=0.2)


def test_remarks_tell_of_rows_left_out(tmp_path: Path) -> None:
    assert prepared(tmp_path).remarks == []
    assert prepared(tmp_path, batch_size=24).remarks == [
        "each epoch leaves out 16 of 40 rows that do not fill a batch of 24"
    ]


def test_training_starts_from_a_file_or_a_run(tmp_path: Path) -> None:
    tensors = tensors_of(flowers())
    folder = saved_run(tmp_path / "run")
    for place in (folder, folder / "model.safetensors"):
        found = prepared(tmp_path, init=str(place))
        assert [found.kept[name] for name in found.spec.initial] == [to_safetensors(tensors, {})]
    wide = tensors | {"head/weight": np.zeros((2, 5), np.float32)}
    (tmp_path / "wide.safetensors").write_bytes(to_safetensors(wide, {}))
    with pytest.raises(CheckpointError, match=r"head/weight in .*wide.* is float32\[2, 5\].*float32\[2, 4\]"):
        prepared(tmp_path, init=str(tmp_path / "wide.safetensors"))


def test_large_parameters_travel_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "INITIAL_BYTES", 40)
    found = prepared(tmp_path, init=str(saved_run(tmp_path / "run")))
    assert len(found.spec.initial) == 3  # 48 B of the hidden weight, 16 + 8 B of the biases, 32 B of the head's
    from safetensors.numpy import load

    together = {name: tensor for blob in found.spec.initial for name, tensor in load(found.kept[blob]).items()}
    assert together.keys() == tensors_of(flowers()).keys()


def test_a_run_on_other_data(tmp_path: Path) -> None:
    run = saved_run(tmp_path / "run")
    data = str(flower_data(tmp_path))
    found = prepare.of_run(str(run), data, label=None, kind="evaluate", batch_size=16)
    assert (found.spec.kind, found.spec.batch_size, found.spec.micro_batches) == ("evaluate", 16, 1)
    assert found.spec.inputs == {"image": "image", "label": "label"}
    assert found.spec.test is not None
    assert found.spec.test.rows == 50
    assert found.spec.train is None
    assert found.spec.initial
    image: dict[str, Any] = {"image": np.ones((5, 3), np.float32)}
    np.savez(tmp_path / "bare.npz", **image)
    bare = prepare.of_run(str(run), str(tmp_path / "bare.npz"), label=None, kind="predict", batch_size=16)
    assert bare.spec.inputs == {"image": "image"}
    with pytest.raises(DataError, match="label"):
        prepare.of_run(str(run), str(tmp_path / "bare.npz"), label=None, kind="evaluate", batch_size=16)
    with pytest.raises(UsageError, match="batch_size = 0"):
        prepare.of_run(str(run), data, label=None, kind="predict", batch_size=0)


def test_equal_words_make_equal_specs(tmp_path: Path) -> None:
    """So a job submitted twice brings no data twice."""
    assert prepared(tmp_path).spec == prepared(tmp_path).spec
    other = prepared(tmp_path, seed=1).spec
    assert other.train is not None
    assert prepared(tmp_path).spec.train != other.train
    assert chunks(prepared(tmp_path)) == chunks(prepared(tmp_path, seed=1))


def chunks(found: submit.Prepared) -> list[BlobId]:
    assert found.spec.train is not None
    return [chunk.blob for column in found.spec.train.dataset.columns for chunk in column.chunks]


def trained(folder: Path, data: Path, **settings: Any) -> Path:
    """The folder of a run that was trained on the data, with its job.toml."""
    run = saved_run(folder / "trained")
    found = prepare.training(resolve({"data": str(data), "batch_size": 8, **settings}), model=flowers())
    (run / "job.toml").write_text(found.spec.request)
    return run


def evaluation(run: Path, data: Path, **more: Any) -> submit.Prepared:
    return prepare.of_run(str(run), str(data), **({"label": None, "kind": "evaluate", "batch_size": 16} | more))


def test_a_runs_own_data_are_measured_on_the_rows_that_were_kept_for_testing(tmp_path: Path) -> None:
    data = flower_data(tmp_path)
    run = trained(tmp_path, data, seed=3, validation_fraction=0.2)
    training = prepare.training(
        resolve({"data": str(data), "batch_size": 8, "seed": 3, "validation_fraction": 0.2}), model=flowers()
    )
    moved = data.rename(tmp_path / "elsewhere.npz")
    found = evaluation(run, moved)
    assert training.spec.test is not None
    assert found.spec.test is not None
    np.testing.assert_array_equal(split_order(found.spec.test), split_order(training.spec.test))
    assert found.remarks == ["measuring the 10 test rows of elsewhere, on which this run was not trained"]
    everything = evaluation(run, moved, kind="predict").spec.test
    assert everything is not None
    assert everything.rows == 50


def test_other_data_are_measured_whole(tmp_path: Path) -> None:
    run = trained(tmp_path, flower_data(tmp_path))
    found = evaluation(run, flower_data(tmp_path, rows=51))
    assert found.spec.test is not None
    assert found.spec.test.rows == 51
    assert found.remarks == ["measuring all 51 rows of flowers"]


def test_own_data_without_test_rows(tmp_path: Path) -> None:
    data = flower_data(tmp_path)
    apart = flower_data(tmp_path / "apart", rows=30)
    run = saved_run(tmp_path / "trained")
    found = prepare.training(resolve({"data": str(data), "batch_size": 8}), model=flowers(), test=str(apart))
    (run / "job.toml").write_text(found.spec.request)
    assert evaluation(run, data).remarks == ["measuring all 50 rows of flowers, on which this run was trained"]
    assert evaluation(run, apart).remarks == ["measuring all 30 rows of flowers"]


def test_the_label_is_that_of_the_training(tmp_path: Path) -> None:
    lines = "".join(f"{row},{row % 3},{row % 5},{'rose' if row % 2 else 'tulip'}\n" for row in range(20))
    (tmp_path / "plants.csv").write_text("height,width,depth,kind\n" + lines)
    (tmp_path / "bare.csv").write_text("height,width,depth\n1,2,3\n4,5,6\n")
    run = trained(tmp_path, tmp_path / "plants.csv", label="kind")
    found = evaluation(run, tmp_path / "plants.csv")
    assert found.spec.inputs == {"image": "x", "label": "y"}
    assert "4 test rows" in found.remarks[0]
    assert evaluation(run, tmp_path / "plants.csv", kind="predict").spec.inputs == {"image": "x"}
    assert evaluation(run, tmp_path / "bare.csv", kind="predict").spec.inputs == {"image": "x"}


def test_the_missing_label_of_a_csv_is_asked_for_with_the_files_own_columns(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("width,height,kind\n1,2,rose\n")
    with pytest.raises(DataError, match=r"two has the columns width, height, kind, but mlp also needs .* --label"):
        prepare.training(resolve({"model": "mlp", "data": str(tmp_path / "two.csv")}))


def test_a_rate_that_never_rises_to_its_value_is_told(tmp_path: Path) -> None:
    assert prepared(tmp_path, epochs=2, warmup_steps=3).remarks == []
    (line,) = prepared(tmp_path, epochs=2, warmup_steps=4).remarks
    assert line == "the rate rises for 4 steps, but there are 4: it never gets to its full value"


def test_arrays_are_called_after_their_model(tmp_path: Path) -> None:
    arrays = {"image": np.ones((40, 3), np.float32), "label": np.zeros(40, np.int64)}
    named = resolve({"batch_size": 8})
    assert prepare.training(named, model=flowers(), arrays=arrays).name == "flowers"
    assert prepare.training(resolve({"batch_size": 8, "name": "mine"}), model=flowers(), arrays=arrays).name == "mine"
    bare: dict[str, Any] = {"image": arrays["image"]}
    with pytest.raises(DataError, match=r'mlp has the column image, but mlp also needs .* with label="…"$'):
        prepare.training(resolve({"model": "mlp"}), arrays=bare)


def test_what_changes_nothing_of_such_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcd " * 100)
    for words, sentence in (
        (
            {"model": "mlp", "data": "digits", "image_size": "9"},
            "image_size = 9: digits holds no image files to resize",
        ),
        ({"model": "mlp", "data": "digits", "context": 9}, "context = 9: digits is no text"),
        (
            {"model": "char-gpt", "data": str(tmp_path / "a.txt"), "scale": 2.0},
            "scale = 2.0: the characters of a are no",
        ),
        ({"model": "mlp", "data": str(tmp_path / "a.txt"), "context": 9}, "a is a text; learn it with char-gpt"),
    ):
        with pytest.raises(UsageError, match=sentence):
            prepare.training(resolve(words))


def test_who_starts_from_a_run_of_text_keeps_its_characters(tmp_path: Path) -> None:
    small = {"model": "char-gpt", "context": 8, "batch_size": 8, "arguments": {"layers": 1, "width": 8, "heads": 2}}
    (tmp_path / "a.txt").write_text("abcd " * 100)
    graph = prepare.training(resolve({**small, "data": str(tmp_path / "a.txt")})).spec.graph
    run = saved_run(tmp_path / "run", graph)
    (tmp_path / "b.txt").write_text("bcd " * 100)  # one character fewer, which would shift the others
    again = prepare.training(resolve({**small, "data": str(tmp_path / "b.txt"), "init": str(run)}))
    assert again.spec.graph.classes == graph.classes
    (tmp_path / "c.txt").write_text("abcd!" * 100)
    with pytest.raises(DataError, match=r"'!' is not among the 5 characters that the model knows"):
        prepare.training(resolve({**small, "data": str(tmp_path / "c.txt"), "init": str(run)}))


def test_images_of_another_size_are_resized_for_a_trained_model_and_refused_for_one_of_their_own(
    tmp_path: Path,
) -> None:
    words = {"model": "mlp", "data": str(image_folder(tmp_path / "pets")), "batch_size": 4}
    spec = prepare.training(resolve(words)).spec
    run = saved_run(tmp_path / "run", spec.graph)
    (run / "job.toml").write_text(spec.request)
    larger = image_folder(tmp_path / "larger", (9, 7))
    found = evaluation(run, larger, kind="predict")
    assert found.files[:2] == [larger / "cat" / "0.png", larger / "cat" / "10.png"]
    assert found.remarks == [
        f"images are resized to 4 × 5, as the model takes them, such as {larger / 'cat' / '0.png'}"
    ]
    with pytest.raises(DataError, match=r"cat holds images without classes, so there is nothing to measure"):
        evaluation(run, larger / "cat")
    with pytest.raises(DataError, match=r"have 7 × 9 pixels, but the model takes 4 × 5; say --image-size 4x5 to have"):
        prepare.training(resolve({**words, "data": str(larger)}), model=spec.graph)


def test_a_graph_that_data_makes_invalid_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("width,kind\n" + f"1,{'x' * 300}\n3,tulip\n" * 20)
    with pytest.raises(ModelError, match="a class"):
        prepare.training(
            resolve({"model": "mlp", "data": str(tmp_path / "two.csv"), "label": "kind", "batch_size": 16})
        )
