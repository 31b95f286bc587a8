"""JUnit XML. No document type, no entities, nothing external: what needs them is refused."""

from __future__ import annotations

import re
from xml.parsers import expat

from ramify.contracts.errors import InvalidRewardError
from ramify.contracts.reports import CaseStatus, SuiteReport
from ramify.planes.reward.reports.cases import MAX_DEPTH, Cases

_SUITES = frozenset({"testsuites", "testsuite"})
_OUTCOMES: dict[str, CaseStatus] = {"failure": "failed", "error": "error", "skipped": "skipped"}
_WORST: tuple[CaseStatus, ...] = ("passed", "skipped", "failed", "error")
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?(?:[eE][+-]?[0-9]{1,2})?|\.[0-9]{1,12}")
_MESSAGE_PART = 8192


class _Reader:
    """Handlers of one document. A case's id is `classname::name`, or its name alone."""

    def __init__(self) -> None:
        self.cases = Cases("JUnit")
        self._path: list[str] = []
        self._case: dict[str, str] | None = None
        self._status: CaseStatus = "passed"
        self._message = ""
        self._stated: list[tuple[int, int]] = []
        self._seen = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        tag = tag.rpartition("}")[2]
        if len(self._path) >= MAX_DEPTH:
            self.cases.refuse(f"it is nested deeper than {MAX_DEPTH}")
        if not self._path and tag not in _SUITES:
            self.cases.refuse("its root is neither testsuites nor testsuite")
        if tag in _SUITES:
            if self._case is not None:
                self.cases.refuse("a suite stands within a case")
            self._stated.append((self._count(attributes.get("tests")), self._seen))
        elif tag == "testcase":
            if self._case is not None:
                self.cases.refuse("a case stands within a case")
            if not self._path or self._path[-1] not in _SUITES:
                self.cases.refuse("a case stands outside of any suite")
            self._case, self._status, self._message = attributes, "passed", ""
        elif tag in _OUTCOMES and self._case is not None and self._path[-1] == "testcase":
            found = _OUTCOMES[tag]
            if _WORST.index(found) > _WORST.index(self._status):
                self._status = found
            self._message += attributes.get("message", "")[:_MESSAGE_PART]
        self._path.append(tag)

    def end(self, tag: str) -> None:
        tag = self._path.pop()
        if tag in _SUITES:
            stated, before = self._stated.pop()
            # pytest states subtests, too, which get no case of their own; whoever adds cases does
            # not get past this, and whoever removes some lacks tests that are expected.
            if 0 <= stated < self._seen - before:
                self.cases.refuse(f"a suite states {stated} tests and holds {self._seen - before}")
        if tag != "testcase" or self._case is None:
            return
        case, self._case = self._case, None
        name, group = case.get("name", "").strip(), case.get("classname", "").strip()
        if not name:
            self.cases.refuse("a case has no name")
        status = self._status
        if case.get("status", "run").lower() in ("notrun", "disabled") and status == "passed":
            status = "skipped"  # as GoogleTest says it
        seconds = self._seconds(case.get("time"))
        self.cases.add(f"{group}::{name}" if group else name, status, seconds, self._message)
        self._seen += 1

    def _count(self, text: str | None) -> int:
        if text is None:
            return -1
        if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
            self.cases.refuse("a suite states no proper number of tests")
        return int(text)

    def _seconds(self, text: str | None) -> float:
        if text is None or not text.strip():
            return 0.0
        plain = text.strip().replace(",", "")  # as some write thousands
        if not _NUMBER.fullmatch(plain):
            self.cases.refuse("a duration is no number of seconds")
        return float(plain)


def parse_junit(data: bytes) -> SuiteReport:
    """Read JUnit XML.

    Raises:
        InvalidRewardError: `malformed`: not well-formed, a document type or an entity, nested too
            deep, a case twice or without a name, a suite that holds more than it states.
    """
    reader = _Reader()

    def forbidden(*_parts: object) -> int:
        reader.cases.refuse("it declares a document type or an entity")

    parser = expat.ParserCreate(namespace_separator="}")
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.StartDoctypeDeclHandler = forbidden
    parser.EntityDeclHandler = forbidden
    parser.UnparsedEntityDeclHandler = forbidden
    parser.ExternalEntityRefHandler = forbidden
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InvalidRewardError(
            "malformed", f"the JUnit report is refused: not well-formed XML ({error})"
        ) from None
    except (UnicodeError, LookupError, ValueError) as error:
        if isinstance(error, InvalidRewardError):
            raise
        raise InvalidRewardError(
            "malformed", "the JUnit report is refused: its encoding cannot be read"
        ) from None
    return reader.cases.report()
