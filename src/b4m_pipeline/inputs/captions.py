"""What a picture's prompt says: templates for captions, further captions, and prompts to be preserved."""

import logging
import re

import pandas as pd

from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.words import article, contains, noun_after
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, PreservationParams

logger = logging.getLogger(__name__)

VARIANT, LOOK = "variant", "look"
"""In the column caption_source: a further caption of a picture (see `add_variants`), and a content's picture
in another look (see looks.py)."""
_PHRASE_WORDS = 4
_PREPOSITIONS = {"above", "at", "behind", "beside", "by", "from", "in", "near", "on", "over", "under", "with"}


class CaptioningError(ValueError):
    """A captioning model or its words are missing; the message names the parameter."""


def shows_style(role: str) -> bool:
    """Whether a role's pictures show a style, on any things; the others show a content, in any style."""
    return role in ("style", "counterpart_style")


def caption_of(
    role: str, token: str, noun: str, text: str, style_token: str, params: CaptioningParams, source: str = "sidecar"
) -> str:
    """One caption from a text that may be empty, a short phrase or a whole caption.

    - A text with the concept's token in it is the caption.
    - A phrase ("red apple", "oil painting") fills the place that the token leaves open: the thing shown on a style's
      picture, the style of a content's picture.
    - Any other text is put behind the template, so that a text encoder's limit never cuts the token.
    """
    text = _shorten(text, params.max_words, token)
    if text and all(contains(text, part) for part in ([token, style_token] if role == "union" else [token])):
        return text
    of_style = shows_style(role)
    if source == "tags":
        phrase = text
    elif role == "union" or (source == "vision_language_model" and not of_style):
        phrase = None  # a sentence about what is seen, not the name of a style
    else:
        phrase = _phrase(text, noun)
    if of_style:
        caption = fill_template(params.style_template, phrase or "", noun, token, params)
    else:
        caption = fill_template(params.content_template, token, noun, style_token if role == "union" else phrase, params)
    return caption if phrase or not text else f"{caption}, {text}"


def fill_template(template: str, content: str, noun: str, style: str | None, params: CaptioningParams) -> str:
    text = template.format(article=article(content or noun), content=content, noun=noun_after(content, noun))
    if style:
        text += params.style_suffix.format(style=style)
    return " ".join(text.split())


def plain_captions(rows: pd.DataFrame, params: CaptioningParams) -> list[str | None]:
    """The captions of a manifest's rows without their concept's token and what the template says of it; None for a picture of
    which nothing is known but its concept."""
    plain: list[str | None] = []
    for row in rows.itertuples():
        text = row.caption.replace(params.style_suffix.format(style=row.token), "").replace(row.token, "")
        plain.append(None if row.caption_source == "template" else " ".join(text.split()))
    return plain


def _shorten(text: str, limit: int, token: str) -> str:
    words = text.split()
    if len(words) > limit:
        logger.warning("A caption of %d words (token %s) is cut at %d: %s", len(words), token, limit, text[:80])
    return " ".join(words[:limit])


def _phrase(text: str, noun: str) -> str | None:
    """The words of a short name of a thing or a style, without article, noun and "in ... style"; None for a caption."""
    text = text.strip(" .\"'")
    if inner := re.fullmatch(r"in (?:the )?(.+) style", text, re.IGNORECASE):
        text = inner[1]
    words = text.split()
    if words and words[0].lower() in ("a", "an", "the"):
        words = words[1:]
    if len(words) > 1 and words[-1].lower() in (noun.lower(), "style"):
        words = words[:-1]
    if not 0 < len(words) <= _PHRASE_WORDS or words[0].lower() in _PREPOSITIONS or any(c in text for c in ",;:.!?"):
        return None
    return " ".join(words)


def add_variants(manifest: pd.DataFrame, params: CaptioningParams, style_token: str) -> pd.DataFrame:
    """The manifest, and again a row for each picture of the content and each of `content_variants`, and for each picture of the
    style and each of `style_variants`, with that as its caption."""
    rows = [manifest]
    for role, templates in (("content", params.content_variants), ("style", params.style_variants)):
        for template in templates:
            copies = manifest[manifest["role"] == role].copy()
            copies["caption"] = [
                " ".join(_variant(template, role, token, noun, style_token).split())
                for token, noun in zip(copies["token"], copies["noun"], strict=True)
            ]
            rows.append(copies.assign(caption_source=VARIANT))
    return pd.concat(rows, ignore_index=True)


def _variant(template: str, role: str, token: str, noun: str, style_token: str) -> str:
    if role == "content":
        return template.format(article=article(token), content=token, noun=noun, style=style_token)
    return template.format(article=article(noun), noun=noun, style=token)


def preserved_prompts(
    params: PreservationParams, content: ConceptParams, style: ConceptParams, counterparts: CounterpartParams, seed: int
) -> list[str]:
    """Prompts for each half to leave alone: known contents in known styles, every other one with a token of the run in place
    of a known content or style, never of both. Empty if no words are named."""
    if not params.contents:
        return []
    draw = numpy_generator(seed, "preserved prompts")
    tokens = {"content": [content.token, *(c.token for c in counterparts.contents)]}
    tokens["style"] = [style.token, *(c.token for c in counterparts.styles)]
    prompts = []
    for index in range(params.number):
        words = {"content": str(draw.choice(params.contents)), "style": str(draw.choice(params.styles))}
        if index % 2:
            kind = ("content", "style")[index // 2 % 2]
            words[kind] = tokens[kind][index // 4 % len(tokens[kind])]
        prompts.append(params.template.format(article=article(words["content"]), **words))
    return list(dict.fromkeys(prompts))
