"""Figures of the world's text: entropy, repeated sentences, long texts, kinds, overlap of splits.

python -m sae_lab.tiny.world.survey --texts 20000        the full-size figures as a table
"""

import re
from collections import Counter
from dataclasses import dataclass

from .text import Text
from .tree import offsets_of

SENTENCE = re.compile(r"(?<=[.!?…])[\"”»“]?\s+|\n+")
LONG = 400  # tokens


@dataclass(frozen=True)
class Survey:
    """What a sample of texts looks like; shares lie between 0 and 1."""

    texts: int
    tokens: int
    nats_per_token: float  # the generator's own entropy, end of text counted as a token
    repeated_sentences: float  # share of sentences that stood before in the sample
    repeated_texts: int
    long_texts: float  # share of texts of 400 tokens or more
    kinds: dict[str, float]  # share of texts
    languages: dict[str, float]  # share of texts


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text."""
    return [s.strip() for s in SENTENCE.split(text) if s and s.strip(" .0123456789")]


def survey(sample: list[Text], tokenizer=None) -> Survey:
    """Figures of a sample; without a `tokenizers.Tokenizer` four characters are a token."""
    lengths = [len(offsets_of(t, tokenizer)) if tokenizer else len(t.text) / 4 for t in sample]
    spoken = Counter(s for t in sample for s in sentences(t.text))
    said = sum(spoken.values())
    n = len(sample)
    return Survey(
        texts=n,
        tokens=round(sum(lengths)),
        nats_per_token=-sum(t.logp for t in sample) / (sum(lengths) + n),
        repeated_sentences=(said - len(spoken)) / said,
        repeated_texts=n - len({t.text for t in sample}),
        long_texts=sum(length >= LONG for length in lengths) / n,
        kinds={k: c / n for k, c in Counter(t.kind for t in sample).most_common()},
        languages={k: c / n for k, c in Counter(t.language for t in sample).most_common()},
    )


def shared(one: list[Text], other: list[Text]) -> int:
    """How many texts two samples have in common."""
    return len({t.text for t in one} & {t.text for t in other})


def main(texts: int = 20_000, characters: int = 4_000_000):
    """Print the figures of `texts` texts; repeated sentences are counted over the first `characters`."""
    from . import block
    from .tree import own_tokenizer

    train, test = block(0, texts, 0, "train"), block(0, texts // 10, 0, "test")
    found, size, part = survey(train, own_tokenizer()), 0, []
    for text in train:
        if size < characters:
            part.append(text)
            size += len(text.text)
    print("\n".join(f"{name}: {value}" for name, value in vars(found).items()))
    print(f"repeated sentences within {size} characters: {survey(part).repeated_sentences:.3f}")
    print(f"texts of test ({len(test)}) that are in train ({len(train)}): {shared(train, test)}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
