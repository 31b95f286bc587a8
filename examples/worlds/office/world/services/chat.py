"""Chat: channels, messages, threads, reactions, pins, search, and a live feed."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

from .desk import Clock, Route
from .documents import Document, Documents
from .talk import Counts
from .web import ApiError, Reply, Request, page

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_EMOJI = re.compile(r"[a-z0-9_+-]{1,40}")


class Chat:
    """The routes of the chat service. Private channels exist for their members alone."""

    def __init__(
        self, documents: Documents, clock: Clock, people: dict[str, str], lock: threading.Lock
    ) -> None:
        """`lock` is held while a request is served."""
        self._documents = documents
        self._counts = Counts(documents)
        self._clock = clock
        self._people = people
        self._said = threading.Condition(lock)

    def routes(self) -> list[Route]:
        """The table of this service."""
        channel, message = "/channels/{id}", "/channels/{id}/messages/{message_id}"
        return [
            Route("GET", "/channels", "chat.list", self._list),
            Route("POST", "/channels", "chat.create", self._create),
            Route("GET", channel, "chat.read", self._read),
            Route("PATCH", channel, "chat.change", self._change),
            Route("PUT", f"{channel}/members/{{address}}", "chat.invite", self._invite),
            Route("DELETE", f"{channel}/members/{{address}}", "chat.leave", self._leave),
            Route("GET", f"{channel}/messages", "chat.messages", self._messages),
            Route("POST", f"{channel}/messages", "chat.post", self._post),
            Route("GET", f"{channel}/stream", "chat.stream", self._stream),
            Route("PATCH", message, "chat.edit", self._edit),
            Route("DELETE", message, "chat.delete", self._delete),
            Route("PUT", f"{message}/pin", "chat.pin", self._pin),
            Route("DELETE", f"{message}/pin", "chat.unpin", self._pin),
            Route("PUT", f"{message}/reactions/{{emoji}}", "chat.react", self._react),
            Route("DELETE", f"{message}/reactions/{{emoji}}", "chat.unreact", self._react),
            Route("GET", "/search", "chat.search", self._search),
        ]

    def committed(self) -> None:
        """A transaction is over: wake the feeds. The lock is held."""
        self._said.notify_all()

    def _list(self, request: Request) -> Reply:
        def rows(after: int, count: int) -> list[Document]:
            found = self._documents.all("channels", after)
            return [each for each in found if self._sees(each, request.user)][:count]

        return Reply(page(request, rows))

    def _create(self, request: Request) -> Reply:
        fields = request.fields()
        name, topic = fields.text("name"), fields.text("topic", "", longest=500)
        private = fields.flag("private", default=False)
        members = [self._known(text.lower()) for text in fields.texts("members", [])]
        fields.done()
        if not _NAME.fullmatch(name):
            raise ApiError(422, "bad_name", "a channel is lower case letters, digits and -")
        if any(each["name"] == name for each in self._documents.all("channels")):
            raise ApiError(409, "exists", f"there is a channel {name} already")
        number = self._counts.next("channels")
        channel = {
            "id": number, "name": name, "topic": topic, "private": private, "archived": False,
            "members": list(dict.fromkeys([request.user, *members])), "pins": [],
        }  # fmt: skip
        self._documents.put("channels", number, channel)
        return Reply(channel, 201, f"channel {number}")

    def _read(self, request: Request) -> Reply:
        channel = self._channel(request, write=False)
        return Reply(channel, target=f"channel {channel['id']}")

    def _change(self, request: Request) -> Reply:
        channel = self._channel(request, write=False)
        if request.user not in channel["members"]:
            raise ApiError(403, "not_member", "only members change a channel")
        fields = request.fields()
        channel["topic"] = fields.text("topic", channel["topic"], longest=500)
        channel["archived"] = fields.flag("archived", channel["archived"])
        fields.done()
        self._documents.put("channels", channel["id"], channel)
        return Reply(channel, target=f"channel {channel['id']}")

    def _invite(self, request: Request) -> Reply:
        channel = self._channel(request)
        address = self._known(request.args["address"].lower())
        channel["members"] = list(dict.fromkeys([*channel["members"], address]))
        self._documents.put("channels", channel["id"], channel)
        return Reply(channel, target=f"channel {channel['id']}")

    def _leave(self, request: Request) -> Reply:
        channel = self._channel(request)
        address = request.args["address"].lower()
        if address not in channel["members"]:
            raise ApiError(404, "not_found", f"{address} is not a member")
        channel["members"].remove(address)
        self._documents.put("channels", channel["id"], channel)
        return Reply(channel, target=f"channel {channel['id']}")

    def _messages(self, request: Request) -> Reply:
        channel = self._channel(request, write=False)
        thread = request.number("thread", 0, 0, 999_999_999)

        def rows(after: int, count: int) -> list[Document]:
            found = self._documents.all("posts", after)
            mine = [each for each in found if each["channel"] == channel["id"]]
            return [each for each in mine if not thread or thread in (each["thread"], each["id"])][
                :count
            ]

        return Reply(page(request, rows))

    def _post(self, request: Request) -> Reply:
        channel = self._channel(request)
        fields = request.fields()
        text = fields.text("text", longest=8000)
        thread = fields.number("thread", 1, 999_999_999) if "thread" in fields else None
        fields.done()
        if thread is not None:
            above = self._message(channel, thread)
            thread = above["thread"] or above["id"]
        number = self._counts.next("posts")
        post: Document = {
            "id": number, "channel": channel["id"], "user": request.user, "text": text,
            "at": self._clock.now(), "edited": False, "thread": thread, "reactions": {},
        }  # fmt: skip
        self._documents.put("posts", number, post)
        return Reply(post, 201, f"message {number}")

    def _stream(self, request: Request) -> Reply:
        """Messages of a channel as JSON lines, as they are said, until `limit` of them are sent."""
        channel = self._channel(request, write=False)
        after = request.number("after", 0, 0, 999_999_999)
        limit = request.number("limit", 100, 1, 100_000)
        feed = self._feed(channel["id"], after, limit)
        kind = "application/x-ndjson"
        return Reply(chunks=feed, target=f"channel {channel['id']}", content_type=kind)

    def _feed(self, channel: int, after: int, limit: int) -> Iterator[bytes]:
        sent = 0
        while True:
            with self._said:
                while not (new := self._documents.all("posts", after)):
                    self._said.wait()
            for post in new:
                if post["channel"] == channel:
                    yield json.dumps(post).encode() + b"\n"
                    sent += 1
                    if sent == limit:
                        return
            after = new[-1]["id"]

    def _edit(self, request: Request) -> Reply:
        post = self._mine(request)
        fields = request.fields()
        post["text"] = fields.text("text", longest=8000)
        fields.done()
        post["edited"] = True
        self._documents.put("posts", post["id"], post)
        return Reply(post, target=f"message {post['id']}")

    def _delete(self, request: Request) -> Reply:
        post = self._mine(request)
        self._documents.remove("posts", post["id"])
        return Reply(None, 204, f"message {post['id']}")

    def _pin(self, request: Request) -> Reply:
        channel = self._channel(request)
        post = self._message(channel, int(request.args["message_id"]))
        pins: list[int] = [number for number in channel["pins"] if number != post["id"]]
        channel["pins"] = sorted([*pins, post["id"]]) if request.method == "PUT" else pins
        self._documents.put("channels", channel["id"], channel)
        return Reply(channel, target=f"message {post['id']}")

    def _react(self, request: Request) -> Reply:
        post = self._message(self._channel(request), int(request.args["message_id"]))
        emoji = request.args["emoji"]
        if not _EMOJI.fullmatch(emoji):
            raise ApiError(422, "bad_emoji", "name it, as in white_check_mark")
        who: set[str] = {*post["reactions"].pop(emoji, [])}
        who = who | {request.user} if request.method == "PUT" else who - {request.user}
        if who:
            post["reactions"][emoji] = sorted(who)
        self._documents.put("posts", post["id"], post)
        return Reply(post, target=f"message {post['id']}")

    def _search(self, request: Request) -> Reply:
        words = request.asked("q").lower().split()
        if not words:
            raise ApiError(400, "bad_parameter", "`q` must hold a word")
        seen = {each["id"] for each in self._documents.all("channels")
                if self._sees(each, request.user)}  # fmt: skip

        def rows(after: int, count: int) -> list[Document]:
            found = [each for each in self._documents.all("posts", after)
                     if each["channel"] in seen
                     and all(word in each["text"].lower() for word in words)]  # fmt: skip
            return found[:count]

        return Reply(page(request, rows))

    def _known(self, address: str) -> str:
        if address not in self._people:
            raise ApiError(422, "unknown_member", f"nobody here is {address!r}")
        return address

    def _sees(self, channel: Document, user: str) -> bool:
        return not channel["private"] or user in channel["members"]

    def _channel(self, request: Request, *, write: bool = True) -> dict[str, Any]:
        number = int(request.args["id"])
        channel = self._documents.get("channels", number)
        if channel is None or not self._sees(channel, request.user):
            raise ApiError(404, "not_found", f"no channel {number}")
        if write and request.user not in channel["members"]:
            raise ApiError(403, "not_member", "only members write here")
        if write and channel["archived"]:
            raise ApiError(409, "archived", f"{channel['name']} is archived")
        return channel

    def _message(self, channel: Document, number: int) -> Document:
        post = self._documents.get("posts", number)
        if post is None or post["channel"] != channel["id"]:
            raise ApiError(404, "not_found", f"no message {number} in {channel['name']}")
        return post

    def _mine(self, request: Request) -> Document:
        post = self._message(self._channel(request), int(request.args["message_id"]))
        if post["user"] != request.user:
            raise ApiError(403, "not_author", f"{post['user']} wrote it")
        return post
