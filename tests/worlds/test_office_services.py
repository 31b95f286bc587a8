"""What the office's services promise: rules, errors, pages, logs, state that is put back."""

from __future__ import annotations

import http.client
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from office_stand import DANA, NAMES, Office, offices

# The services tell their own state to root alone.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the office's own routes are root's")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    yield from offices(tmp_path_factory.mktemp("office"))


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Office]:
    yield from offices(tmp_path)


def everything(office: Office, name: str, path: str) -> list[Any]:
    """All pages of a list, seven at a time."""
    found: list[Any] = []
    join = "&" if "?" in path else "?"
    cursor = ""
    while True:
        got = office.ok(name, "GET", f"{path}{join}limit=7&cursor={cursor}")
        found += got["items"]
        if got["next_cursor"] is None:
            return found
        assert len(got["items"]) == 7
        cursor = got["next_cursor"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mail", "/messages"),
        ("calendar", "/events"),
        ("files", "/nodes"),
        ("chat", "/channels/1/messages"),
    ],
)
def test_pages_together_are_the_list(office: Office, name: str, path: str) -> None:
    whole = office.ok(name, "GET", f"{path}?limit=200")
    assert whole["next_cursor"] is None
    assert everything(office, name, path) == whole["items"]
    ids = [item["id"] for item in whole["items"]]
    assert len(ids) == len(set(ids)) > 2
    for cursor in ("x", "aWQ6", "aWQ6LTE=", "aWQ6OTk5OTk5OTk5OTk5"):
        assert office.refused(name, "GET", f"{path}?cursor={cursor}") == "400 bad_cursor"
    assert office.refused(name, "GET", f"{path}?limit=0") == "400 bad_parameter"


@pytest.mark.parametrize("name", NAMES)
def test_who_is_nobody_gets_nothing(office: Office, name: str) -> None:
    path = {"mail": "/folders", "calendar": "/events", "files": "/nodes", "chat": "/channels"}[name]
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer "}):
        assert office.ask(name, "GET", path, None, headers)[0] == 401
    assert office.refused(name, "GET", "/nothing") == "404 no_such_route"
    assert office.refused(name, "DELETE", path) == "405 method_not_allowed"
    assert office.refused(name, "POST", "/_nothing") == "404 no_such_route"


def as_nobody(office: Office, name: str, method: str, path: str, **headers: str) -> int:
    """The status that a process of another user gets."""
    port = office.first + NAMES.index(name)
    program = (
        "import http.client, json, sys\n"
        "port, method, path, headers = json.loads(sys.argv[1])\n"
        "c = http.client.HTTPConnection('127.0.0.1', port)\n"
        "c.request(method, path, headers=headers)\n"
        "print(c.getresponse().status)\n"
    )
    given = json.dumps([port, method, path, headers])
    nobody = pwd.getpwnam("nobody").pw_uid
    line = ["/usr/bin/env", "python3", "-I", "-c", program, given]
    return int(subprocess.check_output(line, user=nobody, group=nobody, cwd="/"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_only_root_reads_logs_and_acts_as_others(office: Office) -> None:
    for name in NAMES:
        for method, path in (("GET", "/_log"), ("GET", "/_state"), ("POST", "/_state")):
            assert as_nobody(office, name, method, path) == 403
        assert office.ask(name, "GET", "/_log", None, {})[0] == 200
    ari = {"X-Act-As": "ari@north.example"}
    assert as_nobody(office, "mail", "GET", "/folders", **ari) == 401
    assert as_nobody(office, "mail", "GET", "/folders", **ari, **DANA) == 200
    assert office.ok("mail", "GET", "/folders", user="ari")


def test_mail_goes_to_every_mailbox_and_stays_in_its_thread(fresh: Office) -> None:
    sent = {"to": ["bo@north.example", "x@else.example"], "cc": ["chi@north.example"]}
    mine = fresh.ok("mail", "POST", "/messages", sent | {"subject": "Plan", "body": "50% of it"})
    assert mine["folder"] == "sent"
    [theirs] = fresh.ok("mail", "GET", "/messages?q=plan+50%25", user="bo")["items"]
    assert (theirs["folder"], theirs["unread"], theirs["thread"]) == ("inbox", True, mine["thread"])
    assert fresh.ok("mail", "GET", "/messages?q=500%25", user="bo")["items"] == []
    reply = {"body": "fine", "all": True}
    back = fresh.ok("mail", "POST", f"/messages/{theirs['id']}/reply", reply, user="bo")
    assert back["to"] == ["dana@north.example"]
    assert back["cc"] == ["x@else.example", "chi@north.example"]
    thread = fresh.ok("mail", "GET", f"/threads/{mine['thread']}")["items"]
    assert [message["subject"] for message in thread] == ["Plan", "Re: Plan"]
    assert fresh.refused("mail", "GET", f"/messages/{theirs['id']}") == "404 not_found"
    path = f"/messages/{mine['id']}"
    fresh.ok("mail", "PATCH", path, {"add_labels": ["plans", "q2"], "remove_labels": ["q2"]})
    assert {"name": "plans", "messages": 1} in fresh.ok("mail", "GET", "/labels")["items"]
    assert fresh.ok("mail", "DELETE", path)["folder"] == "trash"
    fresh.ok("mail", "DELETE", path)
    assert fresh.refused("mail", "GET", path) == "404 not_found"
    assert fresh.refused("mail", "POST", "/messages", {"to": ["who"]}) == "422 bad_address"
    body = {"to": ["zoe@north.example"], "subject": "s"}
    assert fresh.refused("mail", "POST", "/messages", body) == "422 unknown_recipient"
    assert fresh.refused("mail", "POST", "/messages", body | {"x": 1}) == "422 unknown_field"


def test_calendar_refuses_conflicts_and_small_rooms(fresh: Office) -> None:
    people = [f"{name}@north.example" for name in ("bo", "chi")]
    event = {"title": "Sync", "start": "2026-04-01T10:00:00Z", "end": "2026-04-01T11:00:00Z"}
    event |= {"attendees": people, "room": "Elm"}
    made = fresh.ok("calendar", "POST", "/events", event)
    assert made["attendees"]["bo@north.example"] == "pending"
    later = event | {"start": "2026-04-01T10:30:00+00:00", "end": "2026-04-01T11:30:00Z"}
    assert fresh.refused("calendar", "POST", "/events", later) == "409 room_taken"
    assert fresh.refused("calendar", "POST", "/events", later | {"room": ""}) == "409 conflict"
    force = later | {"room": "Oak", "allow_conflicts": True}
    other = fresh.ok("calendar", "POST", "/events", force)
    window = "start=2026-04-01T00:00:00Z&end=2026-04-02T00:00:00Z"
    [[one, two]] = fresh.ok("calendar", "GET", f"/conflicts?{window}")["items"]
    assert (one["id"], two["id"]) == (made["id"], other["id"])
    busy = fresh.ok("calendar", "GET", f"/freebusy?{window}&attendee={people[0]}&room=Elm")["busy"]
    assert [len(spans) for spans in busy.values()] == [2, 1]
    path = f"/events/{made['id']}"
    fresh.ok("calendar", "POST", f"{path}/answer", {"answer": "declined"}, user="bo")
    busy = fresh.ok("calendar", "GET", f"/freebusy?{window}&attendee={people[0]}")["busy"]
    assert len(busy[people[0]]) == 1
    assert fresh.refused("calendar", "PATCH", path, {"title": "x"}, "bo") == "403 not_organizer"
    moved = {"start": "2026-04-03T10:00:00Z", "end": "2026-04-03T11:00:00Z"}
    answers = fresh.ok("calendar", "PATCH", path, moved)["attendees"]
    assert set(answers.values()) == {"accepted", "pending"}
    fresh.ok("calendar", "DELETE", path)
    assert fresh.refused("calendar", "DELETE", path) == "409 cancelled"
    crowd = [f"{name}@north.example" for name in ("ari", "bo", "chi", "eli", "fay")]
    too_many = event | {"attendees": crowd}
    assert fresh.refused("calendar", "POST", "/events", too_many) == "422 room_too_small"
    backwards = event | {"end": "2026-04-01T09:00:00Z"}
    assert fresh.refused("calendar", "POST", "/events", backwards) == "422 bad_times"
    assert fresh.ok("calendar", "GET", "/events/1")["title"] == "busy"


def test_files_keep_versions_and_rights(fresh: Office) -> None:
    folder = fresh.ok("files", "POST", "/folders", {"parent": 0, "name": "Plans"})["id"]
    made = fresh.ok("files", "POST", f"/files?parent={folder}&name=a.bin", bytes(range(256)))
    path = f"/files/{made['id']}/content"
    assert fresh.ok("files", "GET", path) == bytes(range(256))
    status, answer = fresh.ask("files", "PUT", path, b"two", DANA | {"If-Match": '"9"'})
    assert (status, answer["error"]["version"]) == (412, 1)
    assert fresh.ask("files", "PUT", path, b"two", DANA | {"If-Match": '"1"'})[1]["version"] == 2
    assert fresh.ok("files", "GET", f"{path}?version=1") == bytes(range(256))
    assert fresh.refused("files", "GET", path, user="bo") == "404 not_found"
    share = f"/nodes/{folder}/shares/bo@north.example"
    fresh.ok("files", "PUT", share, {"role": "viewer"})
    assert fresh.ok("files", "GET", path, user="bo") == b"two"
    assert fresh.refused("files", "PUT", path, b"x", user="bo") == "403 read_only"
    fresh.ok("files", "PUT", share, {"role": "editor"})
    fresh.ok("files", "PUT", path, b"three", user="bo")
    node = f"/nodes/{made['id']}"
    assert fresh.refused("files", "PATCH", node, {"link": "public"}, "bo") == "403 not_owner"
    inner = fresh.ok("files", "POST", "/folders", {"parent": folder, "name": "in"})["id"]
    circle = {"parent": inner}
    assert fresh.refused("files", "PATCH", f"/nodes/{folder}", circle) == "409 circle"
    assert fresh.refused("files", "DELETE", f"/nodes/{folder}") == "409 not_empty"
    assert fresh.refused("files", "POST", f"/files?parent={folder}&name=a.bin") == "409 exists"
    for name in ("..", "a/b", ""):
        path = f"/files?parent={folder}&name={name}"
        assert fresh.refused("files", "POST", path) == "422 bad_name"
    fresh.ok("files", "DELETE", f"/nodes/{folder}?recursive=true")
    assert fresh.refused("files", "GET", node) == "404 not_found"
    assert not [v for v in fresh.dump()["versions"].values() if v["file"] == made["id"]]


def test_chat_has_threads_reactions_and_private_channels(fresh: Office) -> None:
    channels = {c["name"]: c for c in fresh.ok("chat", "GET", "/channels")["items"]}
    assert "finance" not in channels
    assert fresh.refused("chat", "GET", "/channels/4") == "404 not_found"
    assert fresh.ok("chat", "GET", "/search?q=forecast")["items"] == []
    assert len(fresh.ok("chat", "GET", "/search?q=forecast", user="ari")["items"]) == 1
    base = f"/channels/{channels['general']['id']}/messages"
    top = fresh.ok("chat", "POST", base, {"text": "hello"})
    below = fresh.ok("chat", "POST", base, {"text": "hi", "thread": top["id"]}, "bo")
    deeper = fresh.ok("chat", "POST", base, {"text": "ho", "thread": below["id"]})
    assert deeper["thread"] == top["id"]
    thread = fresh.ok("chat", "GET", f"{base}?thread={top['id']}")["items"]
    assert [post["text"] for post in thread] == ["hello", "hi", "ho"]
    react = f"{base}/{below['id']}/reactions/tada"
    fresh.ok("chat", "PUT", react)
    fresh.ok("chat", "PUT", react, user="chi")
    assert fresh.ok("chat", "DELETE", react)["reactions"] == {"tada": ["chi@north.example"]}
    edit = f"{base}/{below['id']}"
    assert fresh.refused("chat", "PATCH", edit, {"text": "x"}) == "403 not_author"
    assert fresh.ok("chat", "PATCH", edit, {"text": "x"}, "bo")["edited"]
    fresh.ok("chat", "DELETE", edit, user="bo")
    assert fresh.refused("chat", "DELETE", edit, user="bo") == "404 not_found"
    made = fresh.ok("chat", "POST", "/channels", {"name": "plans", "private": True})
    path = f"/channels/{made['id']}"
    assert fresh.refused("chat", "POST", f"{path}/messages", {"text": "x"}, "bo") == "404 not_found"
    fresh.ok("chat", "PUT", f"{path}/members/bo@north.example")
    fresh.ok("chat", "POST", f"{path}/messages", {"text": "x"}, "bo")
    fresh.ok("chat", "PATCH", path, {"archived": True})
    assert fresh.refused("chat", "POST", f"{path}/messages", {"text": "x"}) == "409 archived"


def test_a_feed_is_half_read_until_more_is_said(fresh: Office) -> None:
    port = fresh.first + NAMES.index("chat")
    last = fresh.ok("chat", "POST", "/channels/1/messages", {"text": "zero"})["id"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/channels/1/stream?after={last - 1}&limit=3", headers=DANA)
    feed = connection.getresponse()
    assert json.loads(feed.readline())["text"] == "zero"
    for text in ("one", "two", "three"):
        fresh.ok("chat", "POST", "/channels/1/messages", {"text": text})
    rest = [json.loads(line)["text"] for line in feed.read().splitlines()]
    assert rest == ["one", "two"]
    connection.close()


def test_the_log_has_every_request_that_somebody_made(fresh: Office) -> None:
    fresh.ok("mail", "GET", "/folders")
    fresh.refused("mail", "POST", "/messages/1/forward", {"to": ["nobody"]})
    fresh.ok("mail", "POST", "/labels", {"name": "new"})
    fresh.ask("mail", "GET", "/folders", None, {})
    told = [(e["seq"], e["action"], e["status"], e["target"]) for e in fresh.log("mail")]
    assert told == [
        (1, "mail.folders", 200, ""),
        (2, "mail.forward", 422, ""),
        (3, "mail.label_create", 201, "label new"),
    ]
    assert fresh.log("mail")[2]["at"] == "2026-03-02T09:00:01Z"


def test_memory_is_put_back_beside_the_same_data_only(fresh: Office) -> None:
    fresh.ok("mail", "POST", "/labels", {"name": "one"})
    state = fresh.ok("mail", "POST", "/_hold")
    before = fresh.log("mail")
    fresh.stop("mail", signal.SIGTERM)
    fresh.start("mail")
    fresh.wait(["mail"])
    assert fresh.log("mail") == []
    fresh.ok("mail", "POST", "/_state", state)
    assert fresh.log("mail") == before
    fresh.ok("mail", "POST", "/labels", {"name": "two"})
    assert fresh.refused("mail", "POST", "/_state", state) == "409 stale_state"
    calendar = fresh.ok("calendar", "GET", "/_state")
    assert fresh.refused("mail", "POST", "/_state", calendar) == "422 bad_state"
    assert fresh.refused("mail", "POST", "/_state", {"log": 1}) == "422 bad_state"
    assert fresh.log("mail")[-1]["at"] == "2026-03-02T09:00:02Z"


def test_what_is_held_waits(fresh: Office) -> None:
    fresh.ok("mail", "POST", "/_hold")
    line = [sys.executable, "client.py", "mail", "POST", "/labels", '{"name": "late"}']
    waiting = subprocess.Popen(line, cwd=fresh.home, env=fresh.env, stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2)
    assert fresh.log("mail") == []
    fresh.ok("mail", "GET", "/_state")
    assert json.loads(waiting.communicate(timeout=30)[0]) == {"name": "late"}


def test_the_same_world_for_the_same_task(tmp_path: Path) -> None:
    dumps: list[Any] = []
    for number in (1, 2):
        root = tmp_path / str(number)
        root.mkdir()
        for office in offices(root, "close-falcon"):
            dumps.append(office.dump())
            assert office.dump("--pristine", "office:close-falcon") == dumps[0]
    assert dumps[0] == dumps[1]
    line = [sys.executable, "-m", "services", "mail", "--data", str(tmp_path / "x")]
    env = office.env | {"OFFICE_TASK_ID": "close-falkon"}
    done = subprocess.run(line, cwd=office.home, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no world for the task 'close-falkon'; known: close-falcon" in done.stderr


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_FIELDS = st.dictionaries(
    st.sampled_from(
        [
            "to",
            "cc",
            "subject",
            "body",
            "folder",
            "unread",
            "add_labels",
            "title",
            "start",
            "end",
            "attendees",
            "room",
            "name",
            "parent",
            "link",
            "role",
            "text",
            "thread",
            "topic",
            "members",
            "private",
            "archived",
            "answer",
            "all",
            "note",
        ]
    ),
    _JSON,
    max_size=5,
)
_TARGETS = [
    ("mail", "POST", "/messages"),
    ("mail", "PATCH", "/messages/147"),
    ("mail", "POST", "/messages/147/reply"),
    ("mail", "POST", "/messages/147/forward"),
    ("calendar", "POST", "/events"),
    ("calendar", "POST", "/events/2/answer"),
    ("files", "POST", "/folders"),
    ("files", "PATCH", "/nodes/9"),
    ("files", "PUT", "/nodes/9/shares/bo@north.example"),
    ("chat", "POST", "/channels"),
    ("chat", "POST", "/channels/1/messages"),
    ("chat", "PATCH", "/channels/1"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(target=st.sampled_from(_TARGETS), body=_FIELDS | _JSON)
def test_no_body_brings_a_service_down(office: Office, target: Any, body: Any) -> None:
    assert office.ask(*target, body)[0] < 500
    assert office.ask(target[0], "GET", "/health")[0] == 200


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(NAMES),
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    raw=st.binary(max_size=60),
)
def test_no_request_brings_a_service_down(office: Office, name: str, path: str, raw: bytes) -> None:
    status, _ = office.ask(name, "POST", f"/{path}", raw, DANA | {"Content-Type": "text/plain"})
    assert status < 500
    status, _ = office.ask(name, "GET", f"/{path}")
    assert status < 500
