"""How well the recogniser reads: precision and recall of each concept against the generator's labels, word by word.

python -m sae_lab.tiny.world.measure        writes data/recognise.json
"""

import json
import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from . import reading
from . import texts as stream
from .language import DATA
from .language import languages as world_languages
from .tree import lineage, sort

FILE = DATA / "recognise.json"
SCENES = ("story", "tale", "letter", "diary", "chronicle", "news", "dialogue", "qa")  # topics not their register's
RARE, SPARSE, SMALL = 20, 0.1, 0.15  # samples that a word must be in; 1 / strength of the L1 penalty; weights left out
SURE = 0.9  # a form whose concept is right less often is left unread


def covered(words, spans) -> list[set]:
    """The concepts, with their parents, on each (start, end) word; `spans` as labels() and recognise() give them."""
    out = [set() for _ in words]
    starts = [a for a, _ in words]
    ends = [b for _, b in words]
    for start, end, concept in spans:
        for n in range(bisect_right(ends, start), bisect_left(starts, end)):
            out[n].update(lineage(concept))
    return out


def measure(texts) -> pd.DataFrame:
    """Precision, recall and number of words of every concept that labels or recogniser name, over some Texts."""
    right, said, true = Counter(), Counter(), Counter()
    for text in texts:
        words = list(zip(*(a.tolist() for a in text.words[:2]), strict=True))
        labels, read = covered(words, text.labels()), covered(words, reading.everything(text.text))
        for a, b in zip(labels, read, strict=True):
            true.update(a)
            said.update(b)
            right.update(a & b)
    names = sorted(set(said) | set(true))
    return pd.DataFrame({
        "precision": [right[n] / said[n] if said[n] else math.nan for n in names],
        "recall": [right[n] / true[n] if true[n] else 0.0 for n in names],
        "words": [true[n] for n in names],
        "read": [said[n] for n in names],
        "sort": [sort(n) for n in names],
    }, index=pd.Index(names, name="concept"))  # fmt: skip


def topic_words(texts: int, languages=None) -> dict:
    """{language: {word: {topic: weight}}}: sparse logistic regressions, one a topic; the intercepts are the word "".

    A sample is what reading.py sees of a sentence: the words of the sentences around it, without names and numbers.
    """
    out = {}
    for language in languages or world_languages():
        scenes = stream(seed=1, languages=[language], kinds=SCENES)
        bags, topics = zip(*(w for text in islice(scenes, texts) for w in windows(text)), strict=True)
        known = Counter(word for bag in bags for word in bag)
        columns = {word: n for n, word in enumerate(sorted(w for w, n in known.items() if n >= RARE))}
        rows = [[columns[w] for w in bag if w in columns] for bag in bags]
        starts = np.cumsum([0, *map(len, rows)])
        x = csr_matrix((np.ones(starts[-1]), np.concatenate(rows), starts), shape=(len(rows), len(columns)))
        out[language] = weights(x, np.array(topics), columns)
    return out


def windows(text):
    """(words around a sentence, topic at its middle or "") of every sentence of a Text."""
    pieces = reading.sentences(text.text, text.language)
    bags = [reading.evidence(sentence, text.language, words) for _, sentence, _, words in pieces]
    spans = [span for span in text.spans if span[2].startswith("topic.")]
    for n, (start, sentence, _, _) in enumerate(pieces):
        middle = start + len(sentence) // 2
        yield reading.around(bags, n), next((c for a, b, c in spans if a <= middle < b), "")


def weights(x, topics, columns: dict) -> dict:
    """{word: {topic: weight}} of the regressions."""
    out: dict = defaultdict(dict)
    for topic in sorted(set(topics) - {""}):
        fitted = LogisticRegression(C=SPARSE, l1_ratio=1.0, solver="liblinear").fit(x, topics == topic)
        out[""][topic[6:]] = round(float(fitted.intercept_[0]), 2)
        for word, n in columns.items():
            if abs(fitted.coef_[0, n]) >= SMALL:
                out[word][topic[6:]] = round(float(fitted.coef_[0, n]), 2)
    return dict(sorted(out.items()))


def doubtful(texts) -> dict:
    """{language: {form: [concepts]}}: what a form seems to say and mostly does not."""
    right, said = Counter(), Counter()
    for text in texts:
        words = list(zip(*(a.tolist() for a in text.words[:2]), strict=True))
        at = {w: n for n, w in enumerate(words)}
        labels = covered(words, text.labels())
        for start, end, concept in reading.everything(text.text, text.language):
            if (start, end) in at and sort(concept) == "word" and not concept.startswith(("form.", "math.", "code.")):
                key = (text.language, text.text[start:end].lower(), concept)
                said[key] += 1
                right[key] += concept in labels[at[start, end]]
    out: dict = defaultdict(lambda: defaultdict(list))
    for (language, form, concept), n in sorted(said.items()):
        if right[language, form, concept] < SURE * n:
            out[language][form].append(concept)
    return {language: dict(sorted(f.items())) for language, f in out.items()}


def main(fit: int = 2_500, test: int = 12_000):
    """Fit topics and doubtful forms on the train split, measure on the test split, then write data/recognise.json."""
    record = reading.measured()  # what reading.py reads with: changed in place
    record.update(topics=topic_words(fit), abstain={})
    record["abstain"] = doubtful(islice(stream(seed=2), 4 * fit))
    table = measure(islice(stream(seed=0, split="test"), test))
    read = table[table["read"] > 0].sort_index()
    record["concepts"] = {n: [round(r.precision, 4), round(r.recall, 4), int(r.words)] for n, r in read.iterrows()}
    write(record)
    print(table.to_string())


def write(record: dict):
    """Write data/recognise.json, one entry a line."""
    lines = []
    for key, part in record.items():
        entries = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in part.items())
        lines.append(f"{json.dumps(key)}: {{\n{entries}\n}}")
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
