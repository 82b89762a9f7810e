"""Who is answered and who is not."""

import pytest

from b4m_pipeline.studio.security import HEADER, refusal

OWN = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", OWN),
        ("GET", {"host": "localhost:7860"}),
        ("GET", {"host": "[::1]:7860", "sec-fetch-site": "same-origin"}),
        ("GET", OWN | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}),  # a link to the page
        ("POST", OWN | {HEADER: "1", "origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}),
    ],
)
def test_the_page_itself_is_answered(method, headers) -> None:
    assert refusal(method, headers) is None


@pytest.mark.parametrize(
    ("method", "headers", "said"),
    [
        ("GET", {"host": "evil.example:7860"}, "evil.example"),
        ("GET", {"host": "127.0.0.1.evil.example"}, "evil"),
        ("GET", {}, "not to ''"),
        ("GET", OWN | {"origin": "http://evil.example"}, "evil.example"),
        ("GET", OWN | {"origin": "http://127.0.0.1:9999"}, "9999"),
        ("GET", OWN | {"origin": "null"}, "null"),
        ("GET", OWN | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "another site"),
        ("POST", OWN | {HEADER: "1", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, "another site"),
        ("POST", OWN, HEADER),
        ("DELETE", OWN, HEADER),
    ],
)
def test_others_are_refused(method, headers, said) -> None:
    assert said in (refusal(method, headers) or "")
