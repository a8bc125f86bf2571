"""Feature store: queries on a store of 5 M tokens × 16 k features, and data and pages for all of 4096 features against SAEDashboard.

    python benchmarks/feature_store.py --json benchmarks/results/feature_store.json [--peers-python PYTHON] [--folder DIR]

1. A store of synthetic codes over real documents (heavy-tailed densities, 32 active features a token) is written, dropped from the page cache and asked.
2. The workbook model and a dictionary of 4096 features read 200 000 tokens; the store is built and a page of every feature written. SAEDashboard does the same for
   two batches of its default 256 features, in a process of its own, with its activation cache on: the first batch costs what every batch costs without the cache (its default), the second finds the model's activations there.
`--peers-python` is the interpreter of an environment that has sae-dashboard (it wants older libraries than this project).
"""
import json, os, resource, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np
import torch
from common import parser, version

K, CONTEXT = 32, 256


def synthetic(n_features, tokens, seed=0):
    """Groups for `write_store`: real documents, with codes whose feature densities are log-normal (median about 0.03 %, the densest on about half of the tokens)."""
    from sae_notebooks.dictionaries.sparse import Codes
    from sae_notebooks.extraction.passes import _groups
    from sae_notebooks.extraction.corpus import open_corpus
    from sae_notebooks.extraction.language_model import load_model
    from sae_notebooks.reading.building import entries
    lm, rng = load_model("workbook"), np.random.default_rng(seed)
    weight = np.minimum(rng.lognormal(0, 2.0, n_features), 2000); ends = np.cumsum(weight / weight.sum())
    scale = rng.lognormal(0, 0.5, n_features).astype(np.float32)

    def several(): # the documents over and over, as often as needed
        for turn in range(1000):
            for e in entries(lm, open_corpus("docs+concepts:20000", seed=turn)): yield e

    def groups(settings, state):
        for n, group in enumerate(_groups((e._replace(ordinal=i) for i, e in enumerate(several())), 2**17, tokens)):
            length = sum(len(e.ids) for e in group)
            drawn = np.sort(np.searchsorted(ends, rng.random((length, K))).astype(np.int32), 1)
            keep = np.ones(drawn.shape, bool); keep[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
            features = drawn[keep]
            values = (rng.gamma(2.0, 1.0, len(features)).astype(np.float32) + 0.05) * scale[features]
            yield group, Codes(torch.from_numpy(np.concatenate([[0], keep.sum(1).cumsum()])), torch.from_numpy(features), torch.from_numpy(values), n_features)
    return groups


def uncached(folder):
    """Ask the system to forget what it holds of a folder's files."""
    os.sync()
    for p in Path(folder).rglob("*"):
        if p.is_file():
            with open(p, "rb") as f: os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def asked(store, features, question):
    """Milliseconds of each answer."""
    out = []
    for f in features:
        t = time.perf_counter(); question(store, int(f)); out.append((time.perf_counter() - t) * 1e3)
    return np.array(out)


def everything(store, f):
    store.top(f); store.bottom(f); store.quantiles(f, 10, 5); store.histogram(f); store.coactive(f)


def queries(folder, n_features, tokens, memory):
    from sae_notebooks.reading.features import FeatureStore
    from sae_notebooks.reading.building import write_store
    started, before = time.time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_store(synthetic(n_features, tokens), folder, n_features, memory=memory)
    seconds, store = time.time() - started, FeatureStore(folder)
    print(f"\n{store}\nwritten in {seconds:.0f} s, {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6:.2f} GB of memory; bytes a token: {({k: round(v, 1) for k, v in store.sizes().items()})}")
    rng = np.random.default_rng(1)
    some, densest = rng.choice(store.alive, 500, replace=False), np.argsort(-store.counts)[:20]
    for f in some[:3]: everything(store, int(f)) # compile
    del store; uncached(folder); store = FeatureStore(folder)
    cold = asked(store, some, lambda s, f: s.top(f, 20))
    rows = {"top 20, cold": cold, "top 20, warm": asked(store, some, lambda s, f: s.top(f, 20)), "top 20, the 20 densest": asked(store, densest, lambda s, f: s.top(f, 20)),
            "bottom 20": asked(store, some, lambda s, f: s.bottom(f, 20)), "10 × 5 by count": asked(store, some, lambda s, f: s.quantiles(f, 10, 5)), "10 × 5 by width": asked(store, some, lambda s, f: s.quantiles(f, 10, 5, by="width")),
            "most co-active": asked(store, some, lambda s, f: s.coactive(f)), "all of it, the 20 densest": asked(store, densest, everything)}
    print(f"\n{'milliseconds':<30}{'median':>9}{'p95':>9}{'max':>9}")
    for k, v in rows.items(): print(f"{k:<30}{np.median(v):>9.2f}{np.percentile(v, 95):>9.2f}{v.max():>9.2f}")
    dense = 4 * n_features
    sizes = store.sizes()
    return dict(top20_p95_ms=np.percentile(cold, 95), top20_warm_p95_ms=np.percentile(rows["top 20, warm"], 95), densest_all_p95_ms=np.percentile(rows["all of it, the 20 densest"], 95),
                bytes_per_token=sum(sizes.values()), dense_bytes_per_token=dense, build_5m_seconds=seconds), {k: dict(median=float(np.median(v)), p95=float(np.percentile(v, 95)), max=float(v.max())) for k, v in rows.items()} | dict(store=repr(store), sizes=sizes)


def dictionary(n_features, lm, corpus):
    """The first features of the largest shipped dictionary; without one, an untrained one, scaled and centred on real activations."""
    from sae_notebooks.core import WorkbookError
    from sae_notebooks.dictionaries.sae import SAE, load_sae
    try: large = load_sae("L")
    except WorkbookError:
        x = lm.capture(torch.from_numpy(lm.encode([next(iter(corpus)).text])[0].ids)[None, :512], lm.middle)[lm.middle][0, 1:]
        large = SAE(lm.width, n_features, "topk", K, float((lm.width / x.pow(2).sum(1).mean()) ** 0.5)).initialise(0); large.mean.copy_(x.mean(0))
    out = SAE(large.d, n_features, "topk", K, large.scale)
    with torch.no_grad():
        for k, v in large.state_dict().items(): getattr(out, k).copy_(v[:n_features] if v.ndim and len(v) == large.n_features else v)
    return out


class Clock:
    """Wall and processor seconds of named parts; the latter hardly depend on what else the machine does."""
    def __init__(self): self.wall, self.cpu = {}, {}
    def __call__(self, name, work):
        w, c = time.perf_counter(), time.process_time(); out = work()
        self.wall[name], self.cpu[name] = time.perf_counter() - w, time.process_time() - c
        return out


def ours(folder, sae, lm, corpus, tokens):
    """Seconds of the parts, and bytes of the pages: store, data and page of every feature."""
    from sae_notebooks.reading.examples import feature_page
    from sae_notebooks.reading.cards import lens_bound, logit_lens
    from sae_notebooks.reading.building import build_store
    clock = Clock()
    store = clock("store", lambda: build_store(sae, lm, corpus, folder/"store", tokens=tokens))
    lens, bound = clock("logit lens", lambda: (logit_lens(lm, sae, store.alive.tolist(), 10), lens_bound(lm)))
    clock("quantile samples", lambda: [store.quantiles(f, 10, 5) for f in store.alive.tolist()] and None)
    (folder/"pages").mkdir()
    def page(f): text = feature_page(store, f, lens=lens, bound=bound).encode(); (folder/"pages"/f"{f}.html").write_bytes(text); return len(text)
    sizes = clock("pages", lambda: [page(f) for f in store.alive.tolist()])
    return store, clock, np.array(sizes)


def peer(folder):
    """SAEDashboard on the same model, dictionary and tokens; runs in the peers' environment, which need not have this project."""
    import safetensors.torch, transformers
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    about = json.loads((folder/"about.json").read_text()); torch.set_num_threads(about["threads"])
    c = json.loads(Path(about["model"], "config.json").read_text()); d = c["hidden_size"]
    shape = dict(hidden_size=d, intermediate_size=c["intermediate_size"], num_hidden_layers=c["num_hidden_layers"], num_attention_heads=c["num_attention_heads"], num_key_value_heads=c["num_key_value_heads"], vocab_size=c["vocab_size"])
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, head_dim=c["head_dim"], rope_theta=c["rope_parameters"]["rope_theta"], rms_norm_eps=c["rms_norm_eps"], tie_word_embeddings=True))
    hf.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(Path(about["model"], "model.safetensors")).items()}, strict=False); hf.tie_weights()
    cfg = HookedTransformerConfig(n_layers=c["num_hidden_layers"], d_model=d, n_ctx=c["max_position_embeddings"], d_head=c["head_dim"], n_heads=c["num_attention_heads"], n_key_value_heads=c["num_key_value_heads"], d_mlp=c["intermediate_size"], d_vocab=c["vocab_size"],
        act_fn="silu", normalization_type="RMS", positional_embedding_type="rotary", rotary_dim=c["head_dim"], rotary_base=c["rope_parameters"]["rope_theta"], rotary_adjacent_pairs=False, eps=c["rms_norm_eps"], gated_mlp=True, final_rms=True, original_architecture="LlamaForCausalLM", device="cpu")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(about["model"], "tokenizer.json")), pad_token="<pad>")
    model = HookedSAETransformer(cfg); model.tokenizer = tokenizer; model.load_and_process_state_dict(convert_llama_weights(hf, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False)
    tokens, w = torch.from_numpy(np.load(folder/"tokens.npy")), safetensors.torch.load_file(folder/"sae.safetensors")
    with torch.no_grad(): difference = (model(tokens[:1]) - hf(tokens[:1]).logits).abs().max().item() # is it the same model?
    sae = TopKSAE(TopKSAEConfig(d_in=d, d_sae=len(w["W_dec"]), k=K, rescale_acts_by_decoder_norm=True)); sae.cfg.metadata.hook_name = about["hook"]
    with torch.no_grad():
        for k, v in dict(W_enc=w["W_enc"].T, W_dec=w["W_dec"], b_enc=w["b_enc"], b_dec=w["b_dec"]).items(): getattr(sae, k).copy_(v) # decoder rows of length one: the rescaling changes nothing
    clock = Clock()
    for name, part in (("first", range(256)), ("second", range(256, 512))):
        config = SaeVisConfig(hook_point=about["hook"], features=list(part), device="cpu", minibatch_size_features=256, minibatch_size_tokens=64, cache_dir=folder/"cache")
        data = clock(name, lambda: SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)); data.model = model
    clock("html", lambda: save_feature_centric_vis(data, folder/"dashboard.html"))
    print("RESULT" + json.dumps(dict(**clock.wall, cpu=clock.cpu, html_bytes=(folder/"dashboard.html").stat().st_size, features=256, logits_differ=difference, version=version("sae-dashboard"))))


def ask_peer(python, folder, sae, lm_folder, tokens, site, threads):
    """The peer's seconds, or why there are none."""
    import safetensors.torch
    folder.mkdir(); folded = sae.fold()
    safetensors.torch.save_file({k: getattr(folded, k).detach().clone() for k in ("W_enc", "W_dec", "b_enc", "b_dec")}, folder/"sae.safetensors")
    np.save(folder/"tokens.npy", tokens)
    (folder/"about.json").write_text(json.dumps(dict(model=str(lm_folder), hook=f"blocks.{site.layer}.hook_resid_post", features=sae.n_features, threads=threads)))
    run = subprocess.run([python, __file__, "--peer", str(folder)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"})
    line = next((l for l in run.stdout.splitlines() if l.startswith("RESULT")), None)
    return json.loads(line[6:]) if line else dict(error=(run.stderr.strip().splitlines() or ["no output"])[-1])


def compared(wall, cpu, n, found):
    """Ratios of features per second, with pages (HTML) and without; against its default (every batch runs the model again) and with its activations cached."""
    total = lambda c, pages=True: sum(v for k, v in c.items() if pages or k != "pages")
    ratio = lambda mine, theirs: n / mine / (found["features"] / theirs)
    peer = dict(wall=found, cpu=found["cpu"])
    theirs = lambda clock, batch, html=True: peer[clock][batch] + html * peer[clock]["html"]
    return dict(features_per_s_vs_saedashboard=ratio(total(wall), theirs("wall", "first")), features_per_s_vs_saedashboard_data=ratio(total(wall, False), theirs("wall", "first", False)), features_per_cpu_s_vs_saedashboard=ratio(total(cpu), theirs("cpu", "first")),
                features_per_s_vs_saedashboard_cached=ratio(total(wall), theirs("wall", "second")), features_per_cpu_s_vs_saedashboard_cached=ratio(total(cpu), theirs("cpu", "second")), saedashboard_page_kb=found["html_bytes"] / 1e3 / found["features"])


def against(folder, args):
    from sae_notebooks.core import data_path
    from sae_notebooks.extraction.corpus import open_corpus
    from sae_notebooks.extraction.language_model import load_model
    lm, corpus = load_model("workbook"), open_corpus("docs+concepts:20000", seed=0)
    sae = dictionary(args.features, lm, corpus)
    from sae_notebooks.reading.building import build_store
    build_store(sae, lm, corpus, folder/"compile", tokens=4096) # kernels are compiled before the clock starts
    store, clock, pages = ours(folder, sae, lm, corpus, args.real_tokens); times = clock.wall
    data, total = sum(v for k, v in times.items() if k != "pages"), sum(times.values())
    print(f"\n{store}\nseconds: {({k: round(v, 1) for k, v in times.items()})}\n{len(pages) / data:,.0f} features/s without pages, {len(pages) / total:,.0f} with; pages of {np.median(pages) / 1e3:.1f} kB (median), {pages.max() / 1e3:.1f} kB (largest)")
    figures = dict(features_per_s=len(pages) / total, features_per_s_data=len(pages) / data, feature_page_kb=pages.max() / 1e3, feature_page_median_kb=np.median(pages) / 1e3)
    ids = np.asarray(store.token)[:len(store) // CONTEXT * CONTEXT].astype(np.int64).reshape(-1, CONTEXT)
    found = ask_peer(args.peers_python, folder/"peer", sae, data_path("workbook_model"), ids, lm.middle, args.threads)
    if "error" in found: print(f"SAEDashboard: absent, not measured ({found['error']}; give --peers-python)")
    else:
        print(f"SAEDashboard {found['version']}: 256 features in {found['first']:.1f} s, the next 256 in {found['second']:.1f} s, HTML of 256 in {found['html']:.1f} s and {found['html_bytes'] / 1e6:.0f} MB (logits differ by {found['logits_differ']:.1e} from transformers')")
        figures |= compared(times, clock.cpu, len(pages), found)
    return figures, dict(seconds=times, cpu_seconds=clock.cpu, load=os.getloadavg()[0], threads=args.threads, peer=found, real_store=repr(store), real_sizes=store.sizes())


def main():
    if "--peer" in sys.argv: return peer(Path(sys.argv[sys.argv.index("--peer") + 1]))
    p = parser(__doc__.splitlines()[0])
    p.add_argument("--tokens", type=int, default=5_000_000, help="of the large store")
    p.add_argument("--large-features", type=int, default=16_384)
    p.add_argument("--features", type=int, default=4096)
    p.add_argument("--real-tokens", type=int, default=200_000)
    p.add_argument("--memory", type=int, default=2**28, help="bytes to turn entries from tokens to features")
    p.add_argument("--peers-python", default=sys.executable)
    p.add_argument("--folder", default=None, help="where to work; a temporary folder")
    p.add_argument("--only", choices=("queries", "against"), default=None)
    args = p.parse_args(); torch.set_num_threads(args.threads)
    figures, record = {}, {}
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        for name, part in (("queries", lambda: queries(Path(tmp)/"large", args.large_features, args.tokens, args.memory)), ("against", lambda: against(Path(tmp), args))):
            if args.only in (None, name): f, r = part(); figures |= f; record[name] = r
    figures = {k: round(float(v), 3) for k, v in figures.items()}
    print("\nfigures:", figures)
    if args.json:
        out = Path(args.json); old = json.loads(out.read_text()) if out.exists() else dict(figures={})
        old = {**old, **record, "figures": old["figures"] | figures, "versions": {k: version(k) for k in ("torch", "numpy", "numba")}, "argv": [a for a in sys.argv[1:] if not a.startswith("/")]}
        out.parent.mkdir(exist_ok=True); out.write_text(json.dumps(old, indent=1) + "\n")


if __name__ == "__main__": main()
