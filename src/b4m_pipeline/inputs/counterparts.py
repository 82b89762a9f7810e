"""Counterparts that the base model draws itself: other contents and styles, by words that it knows.

Every content is drawn in all the styles in turn, and every style shows all the contents in turn. The text beside a picture says
the word that its caption does not replace by a token: the style of a content's picture, the thing on a style's picture.
"""

import logging
from pathlib import Path

from b4m_pipeline.common.seeding import derive_seed
from b4m_pipeline.common.words import article, file_words
from b4m_pipeline.diffusion.families import base_model_id
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import settings_of
from b4m_pipeline.inputs.drawings import Drawing, draw_folders, drawing_folder
from b4m_pipeline.inputs.folders import PicturesError
from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams, DrawnParams

logger = logging.getLogger(__name__)


def counterpart_folders(
    counterparts: CounterpartParams, base_model: BaseModelParams, content: ConceptParams, style: ConceptParams
) -> CounterpartParams:
    """The counterparts as folders of pictures. Those that are words are drawn, unless that was done before. content, style: the
    run's, whose tokens must be no counterpart's.

    Raises PicturesError if one is, and BaseModelError or HubError if there is no such base model, before anything is drawn."""
    if counterparts.source == "folders":
        return counterparts
    words = counterparts.drawn
    _require_own_tokens(words, content, style)
    settings = settings_of(words, words.resolution or base_model.resolution)
    concepts: dict[str, list[ConceptParams]] = {"contents": [], "styles": []}
    folders: dict[Path, list[Drawing]] = {}
    about = {"licence": "generated", "source": base_model_id(base_model)}
    for kind in concepts:
        for given in getattr(words, kind):
            drawings, name = _drawings(words, kind, given.word), f"drawn-{file_words(given.word)}"
            folder = drawing_folder(words.folder, name, drawings, base_model, settings)
            folders[folder] = drawings
            noun = given.word if kind == "contents" else style.noun
            concepts[kind].append(ConceptParams(path=str(folder), name=name, token=given.token, noun=noun, **about))
    found = CounterpartParams(source="folders", **concepts)
    drawn = draw_folders(folders, base_model, settings)
    if drawn:
        logger.info("Counterparts: %d folders in %s, %d of them drawn now", len(folders), words.folder, len(drawn))
    return found


def _require_own_tokens(words: DrawnParams, content: ConceptParams, style: ConceptParams) -> None:
    taken = {content.token.casefold(): "content", style.token.casefold(): "style"}
    for each in (*words.contents, *words.styles):
        if kind := taken.get(each.token.casefold()):  # CLIP's tokenizers know no capitals
            raise PicturesError(f"counterparts.drawn: {each.word!r} has the token of the run's own {kind} ({each.token})")


def _drawings(words: DrawnParams, kind: str, word: str) -> list[Drawing]:
    """What is drawn of a word: in each of the other kind's words in turn, with seeds that no other word has."""
    others = [other.word for other in (words.styles if kind == "contents" else words.contents)]
    first = derive_seed(words.seed, "counterparts", kind, word) % 2**31
    drawings = []
    for index in range(words.images):
        other = others[index % len(others)]
        content, style = (word, other) if kind == "contents" else (other, word)
        prompt = words.template.format(article=article(content), content=content, style=style)
        drawings.append(Drawing(" ".join(prompt.split()), first + index, other))
    return drawings
