"""Nodes as JSON: they come back as they were."""

import datetime
import json
import math
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.vector_stores.rqmoe.nodes import node_json, node_of, text_of
from small_nodes import NUMBERS, TEXTS, node

from rqmoe_store import InvalidInputError

RELATIONS = {
    NodeRelationship.SOURCE: RelatedNodeInfo(
        node_id="doc", node_type=ObjectType.DOCUMENT, metadata={"a": [1]}, hash="h"
    ),
    NodeRelationship.PREVIOUS: RelatedNodeInfo(node_id="before", node_type=ObjectType.TEXT),
    NodeRelationship.NEXT: RelatedNodeInfo(node_id="after"),
    NodeRelationship.PARENT: RelatedNodeInfo(node_id="up"),
    NodeRelationship.CHILD: [RelatedNodeInfo(node_id="one"), RelatedNodeInfo(node_id="two")],
}
NODES: dict[str, BaseNode] = {
    "text": TextNode(
        id_="é'\"",
        text="some text\n\0",
        embedding=[1.0, 0.5],
        metadata={"b": 1, "a": {"y": [None, True, 0.1], "x": ""}},
        excluded_embed_metadata_keys=["b"],
        excluded_llm_metadata_keys=["a"],
        relationships=RELATIONS,
        metadata_template="{key} = {value}",
        metadata_separator=" | ",
        text_template="{content}\n{metadata_str}",
        mimetype="text/markdown",
        start_char_idx=0,
        end_char_idx=2**70,
    ),
    "empty": TextNode(text="", embedding=[1.0]),
    "image": ImageNode(
        text="a caption", image="aGk=", image_url="http://x/y.png", text_embedding=[0.5], embedding=[1.0]
    ),
    "image at a path": ImageNode(image_path="/tmp/dog.jpg", embedding=[1.0]),
    "index": IndexNode(text="see", index_id="other", embedding=[1.0]),
    "index of a node": IndexNode(
        text="see", index_id="i", obj=TextNode(text="inner", id_="inner"), embedding=[1.0]
    ),
    "media": Node(
        text_resource=MediaResource(text="words", mimetype="text/html", path="/tmp/a"),
        image_resource=MediaResource(data=b"\x89PNG\r\n\x1a\n and so on", url="http://x/y"),
        audio_resource=MediaResource(data=b"sound", embeddings={"dense": [1.0, 2.0]}),
        video_resource=MediaResource(path="/tmp/film.mp4"),
        embedding=[1.0],
    ),
    "media without text": Node(image_resource=MediaResource(data=b"pixels"), embedding=[1.0]),
    "media with null text": Node(text_resource=MediaResource(url="http://x/"), embedding=[1.0]),
    "document": Document(text="all of it", metadata={"file_name": "a.md"}, embedding=[1.0]),
    "image document": ImageDocument(image=b"aGk=", text="a caption", embedding=[1.0]),
}


def again(given_node: BaseNode) -> BaseNode:
    return node_of(node_json(given_node)[1], text_of(given_node), given_node.embedding)


@pytest.mark.parametrize("name", NODES)
def test_nodes_of_all_classes_come_back(name: str) -> None:
    found = again(NODES[name])
    assert type(found) is type(NODES[name])
    assert found == NODES[name]
    assert found.hash == NODES[name].hash
    assert found.get_content(MetadataMode.ALL) == NODES[name].get_content(MetadataMode.ALL)


def test_keys_keep_their_order() -> None:
    found = again(node("a", z=1, a={"d": 1, "b": 2}))
    assert json.dumps(found.metadata) == '{"z": 1, "a": {"d": 1, "b": 2}}'


def test_text_is_not_kept_twice() -> None:
    given_node = NODES["text"]
    assert "some text" not in node_json(given_node)[1] and "some text" not in node_json(given_node)[0]
    assert "words" not in node_json(NODES["media"])[1]


VALUES: Any = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, metadata=st.dictionaries(TEXTS, VALUES, max_size=4), name=TEXTS, document=TEXTS)
def test_any_text_and_metadata_come_back(text: str, metadata: Any, name: str, document: str) -> None:
    given_node = node(name, text=text, document=document)
    given_node.metadata = metadata
    assert again(given_node) == given_node
    filtered = json.loads(node_json(given_node)[0])
    assert {key: filtered[key] for key in metadata if key not in {"doc_id", "ref_doc_id"}} == {
        key: metadata[key] for key in metadata if key not in {"doc_id", "ref_doc_id"}
    }


def test_filters_see_documents_and_classes_as_elsewhere_in_the_framework() -> None:
    filtered = json.loads(node_json(node("a", document="d", author="Ann"))[0])
    assert filtered == {
        "author": "Ann",
        "document_id": "d",
        "doc_id": "d",
        "ref_doc_id": "d",
        "_node_type": "TextNode",
    }
    assert json.loads(node_json(node("a"))[0])["ref_doc_id"] == "None"


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"a": math.nan}, "nan"),
        ({"a": [{"b": -math.inf}]}, "-inf"),
        ({"a": 2**64}, "integer beyond 64 bits"),
        ({"a": {"b": [-(2**63) - 1]}}, "integer beyond 64 bits"),
        ({"a": object()}, "cannot be written as JSON.*object"),
        ({"a": {"b": np.float32("nan")}}, r"nan as metadata\['a'\]\['b'\]"),
        ({"a": np.zeros(2)}, r"ndarray\) as metadata\['a'\]"),
        ({"a": np.timedelta64(5, "ns")}, r"timedelta64\) as metadata\['a'\]"),
        ({"a": np.longdouble(1)}, r"longdouble\) as metadata\['a'\]"),
        ({"a": [np.datetime64("NaT")]}, r"datetime64\) as metadata\['a'\]"),
        ({"a": {1: "b"}}, "the key 1"),
        ({"a": b"\xff"}, "cannot be written as JSON"),
    ],
)
def test_metadata_that_json_cannot_hold(metadata: Any, named: str) -> None:
    given_node = node("the node")
    given_node.metadata = metadata
    with pytest.raises(InvalidInputError, match=f"Node 'the node' has .*{named}.*expected texts"):
        node_json(given_node)


def test_embeddings_within_nodes_that_json_cannot_hold() -> None:
    with pytest.raises(InvalidInputError, match="the number nan"):
        node_json(ImageNode(text_embedding=[math.nan]))
    with pytest.raises(InvalidInputError, match="the number inf"):
        node_json(Node(audio_resource=MediaResource(embeddings={"dense": [math.inf]})))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), "2026-01-02T03:00:00+00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
    ],
)
def test_values_that_texts_and_numbers_stand_for(value: Any, kept: Any) -> None:
    given_node = node("a", document="d", plain=value, deep={"in": [value]})
    given_node.relationships[NodeRelationship.SOURCE].metadata = {"plain": value}  # type: ignore[union-attr]
    metadata = again(given_node).metadata
    assert metadata == {"plain": kept, "deep": {"in": [kept]}} and type(metadata["plain"]) is type(kept)
    assert given_node.metadata["plain"] is value, "the node itself stays as it is"


class OwnNode(TextNode):
    """A class of the user's."""

    rating: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "OwnNode"


def test_classes_of_users_come_back() -> None:
    given_node = OwnNode(text="x", rating=5, embedding=[1.0])
    assert again(given_node) == given_node and type(again(given_node)) is OwnNode


def test_classes_that_are_not_known() -> None:
    content = node_json(node("a"))[1].replace('"TextNode"', '"Elsewhere"')
    with pytest.raises(InvalidInputError, match=r"class 'Elsewhere'.*import the module"):
        node_of(content, "a", None)
