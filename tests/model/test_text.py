import msgspec
import pytest

from p2pnn import nn
from p2pnn.errors import ModelError
from p2pnn.model.graph import Graph
from p2pnn.model.text import Ports, ports

LETTERS = ("\n", "a", "b")


def speller(context: int = 4, classes: tuple[str, ...] = LETTERS, *, softmax: bool = True) -> Graph:
    """The least network of text: a table of scores by the character that stands there."""
    tokens, following = nn.Input("tokens", (context,), dtype="int64"), nn.Input("next", (context,), dtype="int64")
    scores = nn.Embedding(len(classes) or 3, len(classes) or 3, name="table")(tokens)
    answer = nn.softmax(scores, name="answer") if softmax else scores
    return nn.Model({"answer": answer}, nn.cross_entropy(scores, following), name="speller", classes=classes).graph


def test_where_text_goes_in_and_out() -> None:
    assert ports(speller()) == Ports("tokens", "answer", "answer", 4, 3, True)
    assert ports(speller(7, softmax=False)) == Ports("tokens", "table", "answer", 7, 3, False)


def test_the_output_with_a_score_per_position_is_taken() -> None:
    tokens = nn.Input("tokens", (4,), dtype="int64")
    scores = nn.Embedding(3, 3, name="table")(tokens)
    model = nn.Model({"best": nn.argmax(scores), "mean": nn.reduce_mean(scores, (1,)), "all": scores}, classes=LETTERS)
    assert ports(model.graph).key == "all"


def test_what_a_graph_lacks_is_said() -> None:
    with pytest.raises(ModelError, match="speller does not go on with text: its classes are not characters"):
        ports(speller(classes=()))
    with pytest.raises(ModelError, match="its classes are not characters"):
        ports(speller(classes=("rose", "tulip")))
    with pytest.raises(ModelError, match=r"no output has one score per position and character, \(4, 2\)"):
        ports(msgspec.structs.replace(speller(), classes=("a", "b")))
    image = nn.Input("image", (4,))
    with pytest.raises(ModelError, match="it must read one input of whole numbers"):
        ports(nn.Model({"y": nn.Linear(3)(image)}, classes=LETTERS).graph)
