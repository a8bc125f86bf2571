"""Speed of interventions, each beside the obvious way, in one run.

    python benchmarks/intervening.py        writes benchmarks/results/intervening.json

`ablation`: every active feature of a prompt ablated alone. The loop sets a hook for each feature and runs the whole model;
`Question.effects` runs the layers before the site once and the others in batches. The same score, compared to 1e-4.
`generation`: steered against unsteered text, a token.
"""
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from common import interleaved, parser, version
from sae_notebooks.dictionaries.sae import load_sae
from sae_notebooks.extraction.presets import has_gemma
from sae_notebooks.extraction.language_model import load_model
from sae_notebooks.intervening.ablation import Question
from sae_notebooks.intervening.steering import Clamp, intervene

RESULTS = Path(__file__).parent / "results" / "intervening.json"
PROMPTS = {
    "short": "The capital of France is",
    "long": "According to the almanac that my grandmother kept beside the clock in the kitchen, the capital of France is",
}


def one_by_one(q, features):
    "The score without each feature: a hook, and the whole model, for every one."
    out = []
    for f in features:
        on = q.codes.indices == int(f)
        gone = torch.zeros_like(q.down.x)
        gone[0, q.codes.rows()[on]] = q.codes.values[on, None] * q.sae.W_dec[int(f)] / q.sae.scale
        with torch.no_grad(), q.lm.edited({q.down.site: lambda x: x - gone}):
            logits = q.lm.model(input_ids=q.down.ids, use_cache=False).logits[0, q.start - 1 :].float()
        if len(q.rivals):
            out.append(float(logits[0, q.target[0]] - logits[0, q.rivals].max()))
        else:
            out.append(float(logits.log_softmax(-1).gather(1, q.target[:, None]).sum()))
    return np.array(out)


def ablation(a) -> dict:  # "model prompt score" → seconds a feature both ways, and their ratio
    "A feature's exact effect by the loop and in batches; the loop over a sample, since each turn costs the same."
    out = {}
    for name, size in {"workbook": "M", **({"gemma": "gemma-M"} if has_gemma() else {})}.items():
        lm, sae = load_model(name), load_sae(size)
        for length, prompt in PROMPTS.items():
            for score, rivals in {"log-probability": (), "margin": (" London", " Madrid", " Rome")}.items():
                q = Question(lm, sae, prompt, " Paris", rivals)
                e = q.effects()
                some = np.linspace(0, len(e.feature) - 1, a.sample).astype(int)
                worst = float(np.abs(q.clean - one_by_one(q, e.feature[some]) - e.effect[some]).max())
                assert worst < 1e-4, worst
                ways = {"loop": lambda: one_by_one(q, e.feature[some]), "batched": q.effects}
                t = {k: statistics.median(v) for k, v in interleaved(ways, a.repeats).items()}
                loop, batched = t["loop"] / len(some), t["batched"] / len(e.feature)
                key = f"{name}, {length} prompt, {score}"
                out[key] = dict(
                    tokens=q.down.ids.shape[1],
                    features=len(e.feature),
                    loop_ms=1e3 * loop,
                    batched_ms=1e3 * batched,
                    ablation_ratio=loop / batched,
                    difference=worst,
                )
                print(key, {k: float(f"{v:.3g}") for k, v in out[key].items()}, flush=True)
    return out


def generation(a) -> dict:  # model → milliseconds a token, plain and steered, and their ratio
    "Forty tokens written greedily with a cache, with one feature clamped and without."
    out = {}
    for name, size in {"workbook": "M", **({"gemma": "gemma-M"} if has_gemma() else {})}.items():
        lm, sae = load_model(name), load_sae(size)
        ids = torch.from_numpy(lm.encode([PROMPTS["short"]])[0].ids)[None]
        how = dict(min_new_tokens=TOKENS, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        edit = Clamp(int(sae.peak.argmax()), multiple=1)

        def plain():
            lm.model.generate(ids, attention_mask=torch.ones_like(ids), **how)

        def steered():
            with intervene(lm, sae, edit, check=False):
                plain()

        t = {k: statistics.median(v) for k, v in interleaved(dict(plain=plain, steered=steered), a.repeats).items()}
        out[name] = dict(
            plain_ms=1e3 * t["plain"] / TOKENS,
            steered_ms=1e3 * t["steered"] / TOKENS,
            steering_ratio=t["steered"] / t["plain"],
        )
        print(name, {k: float(f"{v:.3g}") for k, v in out[name].items()}, flush=True)
    return out


TOKENS = 40
MEASURES = dict(ablation=ablation, generation=generation)  # name → function of the arguments that returns a table


def main():
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--only", choices=MEASURES, help="measure this alone; the file's other tables stay")
    p.add_argument("--sample", type=int, default=24, help="features that the loop takes")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    path = Path(a.json or RESULTS)
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in [a.only] if a.only else MEASURES:
        about = dict(threads=a.threads, repeats=a.repeats, torch=version("torch"), transformers=version("transformers"))
        results[name] = dict(about=about, rows=MEASURES[name](a))
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
