"""References of a Responses request to what is stored: an earlier response, and single items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dsv4.server.dialects.responses.read import kind_of
from dsv4.server.dialects.responses.request import NO_STORE, ResponsesRequest
from dsv4.server.storage.responses import StoredResponses, with_ids
from dsv4.server.wire.errors import ApiError, invalid, show


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request whose references are replaced. own: the items that the client sent, as they are stored; request: one
    with all items of the conversation, and no reference to another response."""

    request: ResponsesRequest
    own: list[dict[str, Any]]


def resolved(request: ResponsesRequest, store: StoredResponses | None, key: str) -> Resolved:
    """Put the stored items in place of the references. Raises ApiError 400 for a reference that leads nowhere.

    As in OpenAI's interface, `instructions` and tools of the earlier response do not apply to the new one.
    """
    previous = request.previous_response_id
    if store is None:
        if previous:
            raise invalid("previous_response_id", NO_STORE)
        return Resolved(request, [])
    own = request.input
    if not isinstance(own, str):
        found: dict[str, Mapping[str, Any]] = {}
        own = [_referenced(item, f"input[{index}]", store, key, found) for index, item in enumerate(own)]
    items = with_ids(own)
    if not previous:
        return Resolved(request.model_copy(update={"input": own}), items)
    try:
        earlier = store.conversation(key, previous)
    except ApiError as error:
        if error.status != 404:
            raise
        raise invalid("previous_response_id", error.message, code="previous_response_not_found") from None
    update = {"input": [*earlier, *items], "previous_response_id": None}
    return Resolved(request.model_copy(update=update), items)


def _referenced(
    item: Mapping[str, Any], place: str, store: StoredResponses, key: str, found: dict[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The item, or the stored one that it refers to. found: those that were read for this request, by id: a request may
    name a large item many times."""
    if (item.get("type") or kind_of(item)) != "item_reference":
        return item
    id = str(item.get("id"))
    if id not in found:
        if (stored := store.item(key, id)) is None:
            raise invalid(place, f"no stored item has the id {show(item.get('id'))}")
        found[id] = stored
    return found[id]
