"""Nodes as JSON and back, without embedding and text, which have columns of their own."""

import datetime
import functools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, MetadataMode

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError

_RESOURCES = ("text_resource", "image_resource", "audio_resource", "video_resource")
_CLASS = "class_name"
_NO_DOCUMENT = "None"
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1


def text_of(node: BaseNode) -> str:
    """The text of a node, "" where it has none."""
    return node.get_content(metadata_mode=MetadataMode.NONE)


def node_json(node: BaseNode) -> tuple[str, str]:
    """A node as two JSON texts: one that filters read, and one that `node_of` makes the node of again.

    The first has its metadata, and the names by which filters in LlamaIndex's own stores can also ask for a
    node's document and class. Numbers of numpy are kept as Python's, dates, times and UUIDs as the texts of
    `rqmoe_store.as_json_value`, and other values that are not JSON as pydantic writes them.

    Raises:
        InvalidInputError: metadata that JSON cannot hold: NaN, infinite numbers, integers beyond 64 bits, or
            objects that pydantic has no JSON for.
        UnicodeEncodeError: a name in them that is no valid Unicode.
    """
    # Before the dump, which makes None of NaN.
    resources = {name: getattr(node, name, None) for name in _RESOURCES}
    embeddings = [resource.embeddings for resource in resources.values() if resource is not None]
    _require_storable(node, node.metadata, "metadata")
    _require_storable(node, [getattr(node, "text_embedding", None), embeddings], "its embeddings")
    plain = node.model_copy(update={"metadata": _plain(node.metadata)})
    try:
        content = plain.model_dump(mode="json", exclude={"embedding"}, fallback=_known_to_json)
    except ValueError as error:
        raise _refused(node, f"content that cannot be written as JSON ({error})") from error
    _remove_text(content, text_of(node))
    for name, resource in resources.items():
        if resource is not None and resource.data is not None:
            content[name]["data"] = resource.data.decode("ascii")  # base64, which the dump leaves out
    document = node.ref_doc_id or _NO_DOCUMENT
    names = {"document_id": document, "doc_id": document, "ref_doc_id": document}
    filtered = {**content["metadata"], **names, "_node_type": node.class_name()}
    return _json(node, filtered), _json(node, content)


def node_of(content: str, text: str, embedding: list[float] | None) -> BaseNode:
    """The node that `node_json` and `text_of` were given.

    Raises:
        InvalidInputError: its class is not known to this process.
    """
    fields = json.loads(content)
    made = _node_class(fields[_CLASS])
    if "text" in made.model_fields:
        fields.setdefault("text", text)
    if fields.get("text_resource") is not None:
        fields["text_resource"].setdefault("text", text)
    return made.from_dict(fields, embedding=embedding)


def _remove_text(content: dict[str, Any], text: str) -> None:
    """Remove the text from the JSON if it is the same as `text`; any other stays, and comes back as it is."""
    for holder in (content, content.get("text_resource") or {}):
        if holder.get("text") == text:
            del holder["text"]


def _json(node: BaseNode, content: dict[str, Any]) -> str:
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise _refused(node, f"content that cannot be written as JSON ({error})") from error


def _plain(value: Any) -> Any:
    """Metadata with dates and the like as they are stored, whatever pydantic would make of them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else rqs.as_json_value(value)


def _known_to_json(value: Any) -> Any:
    """The JSON value of a value that pydantic does not know.

    Raises:
        ValueError: there is none.
    """
    plain = rqs.as_json_value(value)
    if plain is value:
        raise ValueError(f"no JSON for {value!r} of type {type(value).__name__}")
    return plain


def _require_storable(node: BaseNode, value: Any, place: str) -> None:
    value = rqs.as_json_value(value)
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise _refused(node, f"the key {key!r} in {place}, which is no text")
            key.encode()  # the dump would put other characters in the place of halves
            _require_storable(node, part, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            _require_storable(node, part, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise _refused(node, f"the number {value!r} as {place}")
    elif isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        raise _refused(node, f"{value!r} as {place}, an integer beyond 64 bits")
    elif isinstance(value, np.generic | np.ndarray | datetime.date):  # NaT, which pydantic takes for a date
        raise _refused(node, f"{value!r} ({type(value).__name__}) as {place}")


def _refused(node: BaseNode, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"Node {node.node_id!r} has {what}; expected texts, bools, integers of 64 bits, finite floats, None, "
        "dates, times, UUIDs, and lists and dicts of those. Nothing was written; convert it: arrays by "
        ".tolist(), others by str()."
    )


@functools.cache
def _node_class(name: str) -> type[BaseNode]:
    """The node class that calls itself `name`: LlamaIndex's own before those that derive from it."""
    for known in _derived():
        if known.class_name() == name:
            return known
    raise InvalidInputError(
        f"A node of class {name!r} is stored, which this process does not know; import the module that "
        "defines the class, and try again."
    )


def _derived() -> Iterator[type[BaseNode]]:
    """All classes of nodes, those that derive from others after these."""
    level = BaseNode.__subclasses__()
    while level:
        yield from level
        level = [derived for known in level for derived in known.__subclasses__()]
