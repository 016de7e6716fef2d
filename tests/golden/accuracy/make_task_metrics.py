"""Goldens of quant/task_metrics: sacrebleu 2.6.0, scikit-learn 1.9.1, numpy 2.4.6; seed 20261122, 2026-11-22.

pip install sacrebleu==2.6.0 scikit-learn==1.9.1; python make_task_metrics.py > task_metrics.json
"""

import json

import numpy as np
import sacrebleu
from sklearn.metrics import accuracy_score, f1_score

CORPORA = {  # name -> [(hypothesis, [references])]; every text of a corpus has as many references
    "plain": [("The quick brown fox jumped over the lazy dog.", ["The quick brown fox jumps over the lazy dog."]),
              ("It costs $3.50, or 1,000 yen - a \"bargain\" (really)!", ["It costs $3.50 or 1,000 yen: a 'bargain' (really)!"])],
    "several references": [("The cat sat on the mat .", ["The cat is on the mat .", "There is a cat on the mat ."]),
                           ("I have 2-3 ideas, ok?", ["I've 2-3 ideas , OK ?", "I have two or three ideas, ok?"])],
    "one word": [("yes", ["yes"])],
    "short": [("a small test", ["a small trial"]), ("so it goes", ["so it went on"])],
    "nothing in common": [("alpha beta gamma delta", ["one two three four"])],
    "empty hypothesis": [("", ["one two three four five"]), ("one two three four five", ["one two three four five"])],
    "no four-grams match": [("the the the the the", ["the cat the dog the"])],
    "entities and dashes": [("a &quot;b&quot; &amp; c &lt;d&gt; <skipped>e 5-6 x.y 1.5 1,5 .5 5. --", ["a \"b\" & c <d> e 5 - 6 x.y 1.5 1,5 .5 5. - -"])],
    "lines": [("one two-\nthree four five\nsix -\n", ["one twothree four five six -"])],
    "unicode": [("Die Straße – größer, schöner… «ja»", ["Die Strasse – größer und schöner… «ja»"]),
                ("мама мыла раму.", ["мама мыла раму!"]), ("日本語の 文。", ["日本語 の文。"]), ("a\u00a0b\u2003c\u3000d e", ["a b c d e"])],
    "dots": [("a..b ,, c.,d 1.,2 ..", ["a . . b , , c . , d 1.,2 . ."])],
}


def main():
    rng = np.random.default_rng(20261122)
    corpora = []
    for name, texts in CORPORA.items():
        hypotheses = [t[0] for t in texts]
        streams = [list(column) for column in zip(*[t[1] for t in texts])]
        corpora.append({"name": name, "texts": [{"hypothesis": h, "references": r} for h, r in texts],
                        "bleu": sacrebleu.corpus_bleu(hypotheses, streams).score,
                        "chrf": sacrebleu.corpus_chrf(hypotheses, streams).score})
    labels = []
    for classes, n in ((2, 40), (5, 60), (3, 1)):
        truth = rng.integers(0, classes, n)
        predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(0, classes + 1, n))
        labels.append({"truth": truth.tolist(), "predicted": predicted.tolist(),
                       "accuracy": accuracy_score(truth, predicted),
                       "f1_macro": f1_score(truth, predicted, average="macro", zero_division=0),
                       "f1_micro": f1_score(truth, predicted, average="micro", zero_division=0)})
    print(json.dumps({"corpora": corpora, "labels": labels}, indent=1))


if __name__ == "__main__":
    main()
