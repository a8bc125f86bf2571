"""Reading the middle layer: early stop against a full pass that keeps all hidden states, with and without the head over the vocabulary.

    python benchmarks/language_model.py [--rows 32] [--length 256] [--json FILE]
"""
import statistics

import torch
from common import interleaved, parser, report

from sae_notebooks.extraction.corpus import open_corpus
from sae_notebooks.extraction.language_model import load_model


def batch(lm, rows, length):
    """Real text, packed into rows of one length."""
    ids = [i for d in open_corpus("concepts:400", seed=0) for i in lm.encode([d.text])[0].ids]
    return torch.tensor(ids[:rows * length]).view(rows, length)


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--preset", default="workbook")
    p.add_argument("--rows", type=int, default=32)
    p.add_argument("--length", type=int, default=256, help="tokens a row")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    lm = load_model(args.preset)
    ids, layer = batch(lm, args.rows, args.length), lm.middle.layer

    @torch.no_grad()
    def plain(): return lm.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]

    @torch.no_grad()
    def body_only(): return lm.body(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1]

    def ours(): return lm.capture(ids, lm.middle, use_cache=False)[lm.middle]

    competitors = {"full model, all hidden states": plain, "body only, all hidden states": body_only, "capture, early stop": ours}
    torch.testing.assert_close(plain(), ours())
    times = interleaved(competitors, args.repeats)
    median = {k: statistics.median(v) for k, v in times.items()}
    figures = dict(early_stop_vs_plain=median["full model, all hidden states"] / median["capture, early stop"], early_stop_vs_body=median["body only, all hidden states"] / median["capture, early stop"])
    report(f"Reading {lm.middle} of {lm!r}: {args.rows} rows of {args.length} tokens, {args.threads} threads", times, ids.numel(), "tokens", "full model, all hidden states", figures, (), ("torch", "transformers"), args.json)


if __name__ == "__main__": main()
