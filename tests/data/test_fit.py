import pytest

from p2pnn import nn
from p2pnn.data.fit import class_counts, fit, targets
from p2pnn.data.table import ColumnType
from p2pnn.errors import DataError
from p2pnn.model.graph import Graph

IMAGES = {"x": ColumnType("uint8", (1, 8, 8)), "y": ColumnType("uint8", ())}


def classifier(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> Graph:
    image, label = nn.Input("image", shape), nn.Input("label", (), dtype="int64")
    logits = nn.Linear(classes)(nn.flatten(image) if len(shape) > 1 else image)
    return nn.Model(
        outputs={"p": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    ).graph


def regression() -> Graph:
    x, price = nn.Input("features", (3,)), nn.Input("price", (1,))
    found = nn.Linear(1)(x)
    return nn.Model(outputs={"price": found}, loss=nn.mean_squared_error(found, price)).graph


def pairs(graph: Graph, columns: dict[str, ColumnType], **more: object) -> dict[str, str]:
    return {feature.input: feature.column for feature in fit(graph, columns, "data", **more)}  # type: ignore[arg-type]


def test_a_classifier_reads_x_and_y() -> None:
    image, label = fit(classifier(), IMAGES, "digits")
    assert (image.input, image.column, image.shape, image.classes, image.target, image.whole) == (
        "image", "x", (1, 8, 8), 0, False, False,
    )  # fmt: skip
    assert (label.column, label.shape, label.classes, label.target, label.whole) == ("y", (), 10, True, True)
    assert targets(classifier()) == {"label"}
    assert class_counts(classifier(classes=7)) == {"label": 7}


def test_a_target_that_is_no_class() -> None:
    columns = {"y": ColumnType("float32", ()), "x": ColumnType("float32", (3,))}
    features, price = fit(regression(), columns, "houses")
    assert (features.column, price.column, price.shape, price.classes, price.target) == ("x", "y", (1,), 0, True)


def test_names_pair_before_roles_and_wishes_before_names() -> None:
    named = {"label": IMAGES["y"], "y": IMAGES["y"], "image": IMAGES["x"], "x": IMAGES["x"]}
    assert pairs(classifier(), named) == {"image": "image", "label": "label"}
    assert pairs(classifier(), named, wanted={"label": "y"}) == {"image": "image", "label": "y"}
    other = {"kind": IMAGES["y"], "pixels": IMAGES["x"]}
    assert pairs(classifier(), other, label="kind") == {"image": "pixels", "label": "kind"}
    assert pairs(classifier(), IMAGES | {"weight": IMAGES["y"]}) == {"image": "x", "label": "y"}


def test_only_some_inputs() -> None:
    assert pairs(classifier(), {"x": IMAGES["x"]}, inputs=["image"]) == {"image": "x"}


def test_axes_of_one_do_not_matter() -> None:
    assert fit(classifier((8, 8)), IMAGES, "d")[0].shape == (8, 8)


@pytest.mark.parametrize(
    ("columns", "more", "sentence"),
    [
        (
            IMAGES | {"x": ColumnType("uint8", (1, 28, 28))},
            {},
            r"image is \(1, 8, 8\) in the model but \(1, 28, 28\) in d",
        ),
        (IMAGES | {"x": ColumnType("float32", (64,))}, {}, r"image is \(1, 8, 8\) in the model but \(64,\) in d"),
        (
            IMAGES | {"y": ColumnType("float32", ())},
            {},
            r"label takes whole numbers \(int64\), but column y of d holds",
        ),
        ({"x": IMAGES["x"]}, {}, "no column of d is left for the model's input 'label': it has x; name the column"),
        (IMAGES, {"wanted": {"picture": "x"}}, "the model has no input 'picture'; it has image, label"),
        (IMAGES, {"wanted": {"image": "z"}}, "d has no column 'z', asked for as image; it has x, y"),
    ],
)
def test_what_does_not_fit(columns: dict[str, ColumnType], more: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        fit(classifier(), columns, "d", **more)  # type: ignore[arg-type]
