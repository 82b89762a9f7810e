"""Words in prompts."""

import pytest

from b4m_pipeline.common.words import article, contains, file_words, fill_prompt, words_of


def test_article():
    assert [article(word) for word in ("apple", "Ohwx", "snq", "w@z")] == ["an", "an", "a", "a"]


@pytest.mark.parametrize(
    ("text", "token", "found"),
    [
        ("a snq toy", "snq", True),
        ("a SNQ, seen from above", "snq", True),
        ("snqs", "snq", False),
        ("xsnq", "snq", False),
        ("in w@z style", "w@z", True),
        ("in w.z style", "w@z", False),
        ("a red cup here", "red cup", True),
        ("a redcup", "red cup", False),
    ],
)
def test_a_token_is_found_as_a_word_of_its_own(text, token, found):
    assert contains(text, token) == found


def test_names_are_said_with_spaces_and_prompts_become_parts_of_files():
    assert words_of("baby-bottle_2") == "baby bottle 2"
    assert file_words("  a snq toy, in w@z style!") == "a-snq-toy-in-w-z-style"
    assert len(file_words("word " * 60)) == 80 and "/" not in file_words("../a/b")
    assert file_words("画" * 80) == "画" * 26  # 80 bytes hold no more


def test_a_prompt_has_its_words_and_the_right_article():
    template = "{article} {content}  {noun} in {style} style"
    assert fill_prompt(template, {"content": "owl", "style": "ink"}, "emoji") == "an owl emoji in ink style"
    assert fill_prompt(template, {"content": "snq", "style": "w@z"}, "") == "a snq in w@z style"


@pytest.mark.parametrize("content", ["lighthouse", "red lighthouse", "Lighthouse"])
def test_a_noun_is_not_said_twice(content):
    template = "{article} {content} {noun} in {style} style"
    assert fill_prompt(template, {"content": content, "style": "ink"}, "lighthouse") == f"a {content} in ink style"
    assert fill_prompt(template, {"content": "penlighthouse", "style": "ink"}, "lighthouse").count("lighthouse ") == 2
    assert fill_prompt(template, {"content": "balloon", "style": "ink"}, "hot air balloon") == "a hot air balloon in ink style"
    assert fill_prompt(template, {"content": "air", "style": "ink"}, "airship") == "an air airship in ink style"
