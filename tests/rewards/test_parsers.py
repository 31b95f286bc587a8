"""Parsers: what they read, and that no text, however hostile, makes them fail or slow."""

from __future__ import annotations

import json
from typing import TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramify.contracts.errors import ConfigError
from ramify.contracts.messages import Message
from ramify.planes.reward.parsers.base import Parser
from ramify.planes.reward.parsers.boxed import extract_boxed_answer
from ramify.planes.reward.parsers.json import MAX_WORK, JSONParser, scan
from ramify.planes.reward.parsers.think import MaybeThinkParser, ThinkParser
from ramify.planes.reward.parsers.xml import XMLParser


def said(*texts: str) -> list[Message]:
    """A conversation in which the agent says these, with other roles between them."""
    messages = [Message("user", "<answer>planted</answer>")]
    for text in texts:
        messages += [Message("assistant", text), Message("tool", '{"answer": "of a tool"}')]
    return messages


class TestParser:
    def test_the_last_message_of_the_agent_is_the_answer(self):
        assert Parser().parse_answer(said("first", "second")) == "second"
        assert Parser(str.upper).parse_answer("yes") == "YES"
        assert Parser().parse_answer([Message("user", "hello")]) is None

    def test_format_reward_is_the_mean_over_messages(self):
        parser = Parser(lambda text: text if text.isdigit() else None)
        reward = parser.get_format_reward()
        assert reward(completion=said("1", "x")) == 0.5
        assert reward(completion=[]) == 0.0


class TestXML:
    parser = XMLParser(["reasoning", ("code", "answer")], answer_field="answer")

    def test_fields_are_attributes_and_the_last_match_wins(self):
        parsed = self.parser.parse(
            "<reasoning> a </reasoning><answer>1</answer><answer> 2 </answer>"
        )
        assert (parsed.reasoning, parsed.answer, parsed.code) == ("a", "2", None)
        assert self.parser.parse("<answer> 2 </answer>", strip=False).answer == " 2 "

    @pytest.mark.parametrize(
        ("texts", "answer"),
        [
            (["<answer>1</answer>"], "1"),
            (["<answer>1</answer> no <code>2</code>"], "2"),
            (["<code>2</code> no <answer>1</answer>"], "1"),
            (["<answer>1</answer>", "no tag here"], "1"),
            (["<answer>1</answer>", "<answer>2</answer>"], "2"),
            (["<answer>1</answer> <answer>never closed"], "1"),
            (["<answer>\n multi\nline \n</answer>"], "multi\nline"),
            (["<answer></answer>"], ""),
            (["<answer>never closed"], None),
            (["</answer>1<answer>"], None),
            (["<answers>1</answers>"], None),
            ([], None),
        ],
    )
    def test_answers(self, texts, answer):
        assert self.parser.parse_answer(said(*texts)) == answer

    def test_extract_applies_to_the_answer(self):
        parser = XMLParser(["answer"], extract=int)
        assert parser.parse_answer("<answer> 42 </answer>") == 42

    def test_format(self):
        assert self.parser.get_fields() == ["reasoning", "code"]
        assert self.parser.format({"reasoning": "why", "answer": 4}) == (
            "<reasoning>\nwhy\n</reasoning>\n<code>\n4\n</code>"
        )
        assert self.parser.get_format_str() == (
            "<reasoning>\n...\n</reasoning>\n<[ code | answer ]>\n...\n</[ code | answer ]>"
        )
        with pytest.raises(ConfigError, match="'code'"):
            self.parser.format({"reasoning": "why"})

    @pytest.mark.parametrize(
        ("text", "score"),
        [
            ("<reasoning>a</reasoning>\n<answer>1</answer>\n", 1.0),
            ("<reasoning>a</reasoning>\n<code>1</code>", 1.0),
            ("So: <reasoning>a</reasoning><answer>1</answer>", 0.8),
            ("<reasoning>a</reasoning><answer>1</answer> Done.", 0.8),
            ("<reasoning>a</reasoning>", 0.6),
            ("<answer>1</answer>", 0.6),
            ("<reasoning>a</reasoning><answer>1</answer><answer>", 0.6),
            ("<reasoning>a", 0.0),
            ("plain", 0.0),
            ("", 0.0),
        ],
    )
    def test_format_score(self, text, score):
        assert self.parser.get_format_reward()(said(text)) == pytest.approx(score)

    @pytest.mark.parametrize(
        ("fields", "answer"),
        [
            ([], "answer"),
            ([()], "answer"),
            (["a b"], "a b"),
            (["answer", "answer"], "answer"),
            (["answer", ("code", "answer")], "answer"),
            (["reasoning"], "answer"),
            (["a|b"], "a|b"),
        ],
    )
    def test_bad_fields_are_refused(self, fields, answer):
        with pytest.raises(ConfigError):
            XMLParser(fields, answer)

    @given(st.text(alphabet="<>/ab ", max_size=80))
    def test_reads_what_it_wrote_and_never_raises(self, text):
        parser = XMLParser(["a", ("b", "ab")], answer_field="b")
        parser.parse(text)
        assert 0.0 <= parser.format_score(text) <= 1.0
        content = text.replace("<", "")
        assert parser.parse_answer(parser.format({"a": content, "b": content})) == content.strip()

    def test_work_is_linear_where_no_tag_closes(self):
        class Counted(str):
            found = 0

            def find(self, *arguments):
                Counted.found += 1
                return str.find(self, *arguments)

        XMLParser(["answer"]).parse_answer(Counted("<answer>" * 100_000))
        assert Counted.found == 2


class Verdict(msgspec.Struct):
    ok: bool
    score: float = 0.0


class Row(TypedDict):
    name: str


class TestJSON:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('{"a": 1}', {"a": 1}),
            (' [1, 2.5, "x", null, true] \n', [1, 2.5, "x", None, True]),
            ('The answer is {"a": 1}.', {"a": 1}),
            ('First {"a": 1}, then {"a": 2}!', {"a": 2}),
            ('{"a": {"b": [1, {"c": 2}]}} it is', {"a": {"b": [1, {"c": 2}]}}),
            ('```json\n{"a": 1}\n```\nas said in [1]', {"a": 1}),
            ('```\n{"a": 1}\n```\n```json\n{"a": 2}\n```', {"a": 2}),
            ('```json\n{"a": 1}', {"a": 1}),
            ('```python\nx = {"a": 1}\n```\n', {"a": 1}),
            ('```json\n{"a": "```"}\n```', {"a": "```"}),
            ('a stray [ and a stray { and then {"a": 1}', {"a": 1}),
            ('don\'t "quote {"a": 1} me', {"a": 1}),
            ('{"a": "}{]["}', {"a": "}{]["}),
            (r'{"a": "\"}"} tail', {"a": '"}'}),
            ('{"a": 1, "a": 2}', {"a": 2}),
            ('[{"a": 1}', {"a": 1}),
            ("{}", {}),
            ("[]", []),
            ('{"a": 1,}', None),
            ("{'a': 1}", None),
            ('{"a": NaN}', None),
            ('{"a": 1e999}', None),
            ('{"a": ' + "9" * 5000 + "}", None),
            ('{"a": "\\ud800"}', None),
            ('{"\\udfff": 1}', None),
            ('{"a": 1', None),
            ("42", None),
            ('"text"', None),
            ("", None),
            ("[" * 65 + "]" * 65, None),
            ('{"a": 1} ' + "[" * 3, {"a": 1}),
        ],
    )
    def test_table(self, text, value):
        assert JSONParser().parse_answer(said(text)) == value

    def test_nesting_is_bounded(self):
        fits = "[" * 64 + "]" * 64
        assert JSONParser().parse(fits) == json.loads(fits)
        assert JSONParser().parse("[" * 100_000 + "]" * 100_000) is None

    def test_schema(self):
        parser = JSONParser(Verdict)
        assert parser.parse('so {"ok": true, "score": 1}') == Verdict(True, 1.0)
        assert parser.parse('{"ok": true} but {"ok": "yes"} and [1]') == Verdict(True)
        assert parser.parse('{"ok": "true"}') is None
        assert JSONParser(list[int]).parse('[1, 2] ["a"]') == [1, 2]
        assert JSONParser(Row).parse('{"name": "x"}') == {"name": "x"}
        assert parser.get_format_reward()(said('{"ok": true}', "x")) == 0.5

    def test_what_is_no_schema_is_refused(self):
        with pytest.raises(ConfigError, match="schema"):
            JSONParser(dict[int, complex] | Verdict | Row)

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner) | st.dictionaries(st.text('ab[]{}"'), inner),
            max_leaves=12,
        ).filter(lambda value: isinstance(value, dict | list)),
        st.text(alphabet="ab .,\n'", max_size=20),
        st.text(alphabet="ab .,\n'", max_size=20),
    )  # fmt: skip
    def test_finds_any_value_within_prose(self, value, before, after):
        assert JSONParser().parse(f"{before}{json.dumps(value)}{after}") == value

    @given(st.text(alphabet='[]{}":,\\1aN`\n ', max_size=120))
    def test_never_raises_and_gives_json_only(self, text):
        value = JSONParser().parse(text)
        assert value is None or json.loads(json.dumps(value)) == value

    @pytest.mark.parametrize(
        "unit", ["[", "{", '["', '{"', '["a",', '{"a":', "[1,", "[[],", "[{},", '[{"a":"', "[NaN,",
                 '",[",', "`", "```\n[", '[\\"', "[[[[1]]],"],
    )  # fmt: skip
    def test_work_is_linear_on_hostile_text(self, unit):
        for size in (2_000, 20_000):
            text = unit * (size // len(unit)) + '"end'
            works = [work for _, work in scan(text)]
            assert all(work <= (MAX_WORK + 2) * len(text) + 2_000 for work in works)
            JSONParser().parse(text)

    def test_gives_up_rather_than_take_long(self):
        assert JSONParser().parse('{"a": 1}' + "[" * 8 + '"x') == {"a": 1}
        assert JSONParser().parse('{"a": 1}' + "[" * 100 + '"' + "x" * 10_000) is None


class TestThink:
    @pytest.mark.parametrize(
        ("text", "strict", "maybe"),
        [
            ("<think>hm</think> 42 ", "42", "42"),
            ("hm</think>42", "42", "42"),
            ("<think>a</think>no<think>b</think>42", "42", "42"),
            ("42", None, "42"),
            ("<think>hm 42", None, None),
            ("<think>a</think>41<think>or 42", None, None),
            ("<think></think>", "", ""),
            ("", None, ""),
        ],
    )
    def test_table(self, text, strict, maybe):
        assert ThinkParser().parse_answer(said(text)) == strict
        assert MaybeThinkParser().parse_answer(said(text)) == maybe

    def test_extract(self):
        parser = ThinkParser(extract_boxed_answer)
        assert parser.parse(r"<think>\boxed{1}</think> \boxed{2}") == "2"
        assert parser.parse(r"<think>\boxed{1}</think> dunno") is None

    @pytest.mark.parametrize(
        ("text", "strict", "maybe"),
        [
            ("<think>hm</think>42", 1.0, 1.0),
            (" <think>hm</think>42", 1.0, 1.0),
            ("so <think>hm</think>42", 0.0, 0.0),
            ("<think>hm</think>", 0.0, 0.0),
            ("<think>a</think><think>b</think>42", 0.0, 0.0),
            ("42", 0.0, 1.0),
            ("", 0.0, 0.0),
        ],
    )
    def test_format(self, text, strict, maybe):
        assert ThinkParser().format_score(text) == strict
        assert MaybeThinkParser().format_score(text) == maybe

    @given(st.lists(st.sampled_from(["<think>", "</think>", "a", " "]), max_size=12).map("".join))
    def test_no_thought_is_ever_an_answer(self, text):
        for parser in (ThinkParser(), MaybeThinkParser()):
            answer = parser.parse(text)
            assert answer is None or ("think>" not in answer and text.rstrip().endswith(answer))


class TestBoxed:
    @pytest.mark.parametrize(
        ("text", "answer"),
        [
            (r"so \boxed{42}.", "42"),
            (r"\boxed{1} or \boxed{2}", "2"),
            (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
            (r"\boxed{ \left\{ 1 \right\} }", r"\left\{ 1 \right\}"),
            (r"\boxed {7}", "7"),
            (r"\fbox{7}", "7"),
            (r"\boxed{1} then \boxed{2", None),
            (r"\boxed 7", None),
            ("42", None),
            ("", None),
        ],
    )
    def test_table(self, text, answer):
        assert extract_boxed_answer(text) == answer

    @given(st.text(alphabet="{}\\boxed ", max_size=100))
    def test_never_raises(self, text):
        answer = extract_boxed_answer(text)
        assert answer is None or answer in text
