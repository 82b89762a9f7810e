"""Words in prompts."""

import re


def article(word: str) -> str:
    """a or an, by the first letter."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def contains(text: str, token: str) -> bool:
    """Whether a text holds a token as a word, or words, of its own, whatever its capitals."""
    return re.search(rf"(?<!\w){re.escape(token)}(?!\w)", text, re.IGNORECASE) is not None


def words_of(name: str) -> str:
    """A concept's name as it is said: "baby-bottle" -> "baby bottle"."""
    return name.replace("-", " ").replace("_", " ")


def file_words(text: str) -> str:
    """Letters and digits of a text, the rest as hyphens, at most 80 bytes: a part of a file's name."""
    return "-".join("".join(c if c.isalnum() else " " for c in text).split()).encode()[:80].decode(errors="ignore")


def noun_after(content: str, noun: str) -> str:
    """The class noun, or nothing if the content ends with it: "a red lighthouse", not "a red lighthouse lighthouse"."""
    return "" if f" {content}".lower().endswith(f" {noun}".lower()) else noun


def fill_prompt(template: str, words: dict[str, str], noun: str) -> str:
    """A prompt's template with words (or tokens) for {content} and {style}. A noun that holds the content's words stands for
    both: "a hot air balloon", not "a balloon hot air balloon"."""
    content = words["content"]
    if noun_after(content, noun) and contains(noun, content):
        content = noun
    filled = template.format(**words | {"content": content}, noun=noun_after(content, noun), article=article(content))
    return " ".join(filled.split())
