"""The lesson in reading: what is asked of each word, and that a fresh encoder learns it."""

from __future__ import annotations

import torch

from ditbench.worlds.scenes import grammar
from ditbench.worlds.scenes.grammar import parse
from ditbench.worlds.scenes.model import build_text_encoder, build_tokenizer, tokenize
from ditbench.worlds.scenes.recipe.lesson import NOTHING, PLACES_FROM, SPOTS, answers, refit, teach
from ditbench.worlds.scenes.settings import TEXT_WIDTH


def test_every_word_of_a_phrase_is_asked_for_its_own_object() -> None:
    wanted = answers(parse("a large red circle above a small blue ring on a striped gray and black background"))
    red, blue = grammar.COLOURS.index("red"), grammar.COLOURS.index("blue")
    assert wanted["colour"][:9].tolist() == [red] * 4 + [NOTHING] + [blue] * 4
    assert wanted["spot"][[0, 5]].tolist() == list(SPOTS["above"])
    striped = grammar.BACKGROUNDS.index("striped")
    assert wanted["pattern"].tolist() == [NOTHING] * 10 + [striped] * 6 + [NOTHING] * 4
    alone = answers(parse("a small cyan cross at the top left on a plain pink background"))
    assert set(alone["spot"][:4]) == {PLACES_FROM + grammar.PLACES.index("at the top left")}
    assert alone["first"][9] == alone["second"][9] == grammar.BACKGROUND_COLOURS.index("pink")


def test_a_fresh_encoder_learns_to_bind_words_and_hears_their_order() -> None:
    torch.manual_seed(0)
    encoder, tokenizer = build_text_encoder(), build_tokenizer()
    assert teach(encoder, tokenizer, seed=0, steps=150) > 0.9
    ids, mask = tokenize(
        tokenizer,
        [
            "a large red circle left of a small blue ring on a plain gray background",
            "a small blue ring left of a large red circle on a plain gray background",
        ],
    )
    with torch.no_grad():
        words = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    # "red" is the third word of one and the eighth of the other: the same word, elsewhere in the picture.
    assert (words[0, 2] - words[1, 8]).norm() > 0.2 * words[0, 2].norm()


def test_a_projection_is_fitted_to_a_new_encoder() -> None:
    torch.manual_seed(1)
    former, encoder, tokenizer = build_text_encoder(), build_text_encoder(), build_tokenizer()
    projection = torch.nn.Linear(TEXT_WIDTH, 16)
    missed = refit(projection, encoder, former, tokenizer, seed=0, steps=60)
    assert missed < 0.9
