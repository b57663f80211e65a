"""The strict decoder: what it takes is what Python's takes; what two parsers could read differently it refuses."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import time

import pytest

from rgalign.service.errors import ErrorCode, ServiceFault
from rgalign.service.strict_json import MAX_DEPTH, decode_object, deeper_than

REFUSED = [
    "NaN", "Infinity", "-Infinity", "nan", "inf", "1e999", "-1e999", "1e400", "01", "+1", ".5", "5.", "1e", "0x10",
    "1_000", "9223372036854775808", "-9223372036854775809", "9" * 41, "1." + "0" * 41, "1" * 5_000, "True", "None",
    "undefined", "'a'", '"a', '"\\x41"', '"\\ud800"', '"\\udc00"', '"a\\ud83d"', '"\\ude00\\ud83d"', '"\t"', '"\n"',
    '"\x00"', "[1,]", "[,1]", "{,}", "{1:2}", "[1 2]", "1 2", "/*c*/1", "[" * 16 + "]" * 16, "]", "{",
    '{"a":1,"a":1}', '{"a":1,"\\u0061":2}', '[{"b":[{"x":1,"x":2}]}]',
]  # fmt: skip
TAKEN = [
    "0", "-0", "1", "-1", "1.5", "1e2", "1E-400", "9223372036854775807", "-9223372036854775808", "true", "null",
    '"\\u0000"', '"\\ud83d\\ude00"', '"😀"', '"\\\\"', '"\\\\\\""', '"[[[[[[[[[[[[[[[[[[[["', '"\\"[[[[[[[[[[[[[[[[[["',
    "[]", "[[]]", "{}", '{"a":{"b":[]}}', " [ 1 , 2 ] ", "[" * 15 + "]" * 15,
]  # fmt: skip


@pytest.mark.parametrize("literal", REFUSED, ids=lambda text: repr(text[:24]))
def test_refused_anywhere(literal: str) -> None:
    for body in (f'{{"k":{literal}}}', f'{{"a":[{literal}]}}'):
        with pytest.raises(ServiceFault) as caught:
            decode_object(body.encode())
        assert caught.value.code is ErrorCode.MALFORMED_JSON


@pytest.mark.parametrize("literal", TAKEN, ids=lambda text: repr(text[:24]))
def test_taken_as_python_does(literal: str) -> None:
    body = f'{{"k":{literal}}}'
    assert decode_object(body.encode()) == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"1", b"[]", b'"a"', b"null", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b'{"a":"\xff"}', b"{}{}",
     b"{} x",     b'{"a":"\xc0\xaf"}', b'{"a":"\xed\xa0\x80"}', b'{"\xf4\x90\x80\x80":1}', b"{}\x00", b"\x00{}"],
)  # fmt: skip
def test_a_body_that_is_no_object_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(ServiceFault):
        decode_object(body)


def test_keys_too_must_be_encodable() -> None:
    with pytest.raises(ServiceFault):
        decode_object(b'{"\\udfff":1}')


@pytest.mark.parametrize("depth", [17, 100, 100_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_depth_is_bounded_before_parsing(depth: int, pair: str) -> None:
    opening = pair[0] if pair == "[]" else '{"a":'
    began = time.process_time()
    with pytest.raises(ServiceFault):
        decode_object((opening * depth).encode())
    with pytest.raises(ServiceFault):
        decode_object((opening * depth + pair[1] * depth).encode())
    assert time.process_time() - began < 0.5


def test_depth_is_that_of_a_plain_count() -> None:
    """Against the definition: a loop over characters outside strings."""

    def depth_of(text: str) -> int:
        deepest = depth = 0
        in_string = escaped = False
        for character in text:
            if in_string:
                in_string, escaped = escaped or character != '"', character == "\\" and not escaped
            elif character == '"':
                in_string = True
            elif character in "[{":
                depth += 1
                deepest = max(deepest, depth)
            elif character in "]}":
                depth -= 1
        return deepest

    rng = random.Random(0)

    def value(depth: int) -> object:
        kind = rng.random()
        if depth == 0 or kind < 0.2:
            return rng.choice(['"', "\\", '\\"', "[[[", "]}", 1, None, "\\\\", '"[', "\n"])
        if kind < 0.6:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(["a", '"', "[", "\\"]) + str(i): value(depth - 1) for i in range(rng.randrange(4))}

    seen = set()
    for _ in range(3_000):
        text = json.dumps(value(rng.randrange(9)))
        depth = depth_of(text)
        seen.add(depth)
        assert not deeper_than(text.encode(), depth), text
        assert depth == 0 or deeper_than(text.encode(), depth - 1), text
    assert len(seen) > 6
    assert MAX_DEPTH == 16


@pytest.mark.parametrize(
    "shape",
    ["[]", '{"a":1},', '"', "\\", '\\"', "[", "]", "1", "1e9,", '"a":', " ", "\\u0041", '"\\ud800",', "-", "é", "{",
     "[1],"],
)  # fmt: skip
def test_cost_is_linear(shape: str) -> None:
    """Sixteen times the bytes cost less than a hundred times as much, where squared cost would be 256 times.

    The best of three, for the machine is shared.
    """

    def seconds(num_bytes: int) -> float:
        body = b'{"a":[' + shape.encode() * (num_bytes // len(shape.encode())) + b"0]}"
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            with contextlib.suppress(ServiceFault):
                decode_object(body)
            best = min(best, time.process_time() - began)
        return best

    gc.disable()  # it looks at all objects of the process, which are not the decoder's
    try:
        assert seconds(256 << 10) <= 100 * seconds(16 << 10) + 2e-3
    finally:
        gc.enable()
