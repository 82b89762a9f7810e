"""Words in prompts."""

from b4m_pipeline.common.words import article


def test_article():
    assert [article(word) for word in ("apple", "Ohwx", "snq", "w@z")] == ["an", "an", "a", "a"]
