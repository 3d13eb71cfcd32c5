"""The words of the mini world as a CLIP vocabulary: CLIP's own merges, cut to those that the grammar's captions use.

A word of the world is one token or few; any other word falls to its letters, so every prompt can be read. Ids: 256
bytes, 256 bytes that end a word, the merges, start, end.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from sp_rerank.train.mini.grammar import ACCESSORIES, BACKGROUNDS, NUMBERS, OBJECTS, RELATIONS, plural, singular

CONTEXT = 32  # tokens, start and end included; the longest caption of the grammar has 15


def words() -> list[str]:
    """Every word that a caption of the grammar can hold."""
    phrases = [*map(singular, OBJECTS), *map(plural, OBJECTS), *ACCESSORIES.values(), *BACKGROUNDS.values()]
    return sorted({
        word for phrase in [*phrases, *RELATIONS.values(), *NUMBERS.values(), "wearing"] for word in phrase.split()
    })


def merges() -> list[str]:
    """The merges of CLIP's byte-pair encoding that the words need, in CLIP's order, each "left right"."""
    from open_clip.tokenizer import SimpleTokenizer

    ranks: Any = SimpleTokenizer().bpe_ranks
    used: set[tuple[str, str]] = set()
    for word in words():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            used.add(best)
            parts = _merge(parts, best)
    return [" ".join(pair) for pair in sorted(used, key=ranks.__getitem__)]


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(parts):
        joined = tuple(parts[i : i + 2]) == pair
        merged.append("".join(parts[i : i + 2]) if joined else parts[i])
        i += 2 if joined else 1
    return merged


def build_tokenizer():
    """A CLIPTokenizer over the world's vocabulary, with Stable Diffusion v1's special tokens."""
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPTokenizer

    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges())]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in merges()],  # pyright: ignore[reportArgumentType]
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )


if __name__ == "__main__":
    folder = Path("build/mini/tokenizer")
    build_tokenizer().save_pretrained(folder)
    print(folder, len(merges()), "merges")
