"""Makes checkpoints whose sizes take the kernels for tensor cores, and what Transformers says of
them:

    python3 tests/gpu/parity.py DIR [CASE ...]

It needs torch and transformers, and two minutes; no GPU. Each case is a directory of DIR in the
layout of `tests/fixtures/parity`: a checkpoint in Hugging Face layout with random weights in bf16,
and `expected.safetensors` with `input_ids` [T] (int32) and `logits` [T, vocab] (float32, computed
in float32 with eager attention from the weights as stored). They are too large to be kept; the same
seed gives the same ones. `backends/tests/cuda.rs` compares with them where MILLSTREAM_PARITY names
DIR.

Matrices are scaled by their width, so that activations stay near 1 whatever the depth: rounding
errors then add up as they do in a trained model, and the logits are not those of one feature.
"""

import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

# More than two tiles of 128 queries, and no multiple of a block of 16 positions.
NUM_TOKENS = 300

# Least distance between the last expert chosen and the next, of logits that deviate by 1: what is
# wrong with them in bf16 is a fifth of that.
ROUTER_GAP = 0.025

COMMON = dict(
    vocab_size=2048,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    tie_word_embeddings=False,
)
SLIDING, FULL = "sliding_attention", "full_attention"

# Name, family in Transformers, mean of norm weights, configuration.
CASES = {
    # Heads of 128 with norms, two queries for a key.
    "qwen3": (
        "Qwen3",
        1.0,
        dict(
            hidden_size=1024,
            intermediate_size=2048,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
        ),
    ),
    # Heads of 64, four queries for a key.
    "llama": (
        "Llama",
        1.0,
        dict(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
        ),
    ),
    # Experts in every layer.
    "qwen3-moe": (
        "Qwen3Moe",
        1.0,
        dict(
            hidden_size=512,
            intermediate_size=1024,
            moe_intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=16,
            num_experts_per_tok=4,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
    ),
    # Heads of 256, windows that end inside a block. The root of the hidden size, which Gemma rounds
    # to the dtype of the weights, is a whole number: it does not depend on the dtype.
    "gemma3": (
        "Gemma3",
        0.0,
        dict(
            hidden_size=1024,
            intermediate_size=2048,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=101,
            layer_types=[SLIDING, SLIDING, FULL, SLIDING],
            pad_token_id=0,
        ),
    ),
}


def classes(family):
    """The configuration and the model of a family."""
    config = {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config")
    return getattr(transformers, config), getattr(transformers, f"{family}ForCausalLM")


def randomise(model, norm_mean, generator):
    """Gives every parameter a value at which it matters."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("norm.weight"):
                tensor.copy_(norm_mean + 0.2 * noise)
            elif name.endswith("embed_tokens.weight"):
                tensor.copy_(noise / (32.0 if norm_mean == 0.0 else 1.0))
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def without_ties(model, ids, top_k, generator):
    """Replaces tokens until no router is near a tie, where rounding alone would choose another
    expert: one such token early on shows in all that follow it."""
    gaps = []

    def watch(router, inputs):
        logits = inputs[0].reshape(-1, router.weight.shape[1]) @ router.weight.T
        best = logits.topk(top_k + 1).values
        gaps.append(best[:, -2] - best[:, -1])

    routers = [module for path, module in model.named_modules() if path.endswith("mlp.gate")]
    hooks = [router.register_forward_pre_hook(watch) for router in routers]
    for _ in range(200):
        gaps.clear()
        with torch.no_grad():
            model(ids[None], use_cache=False)
        tied = torch.stack(gaps).amin(0) < ROUTER_GAP
        if not tied.any():
            break
        ids[tied] = random_ids(int(tied.sum()), generator)
    else:
        sys.exit("no prompt without ties was found")
    for hook in hooks:
        hook.remove()


def random_ids(count, generator):
    return torch.randint(3, COMMON["vocab_size"], (count,), generator=generator)


def make(name, directory):
    """Writes the checkpoint of a case and its expected logits."""
    family, norm_mean, config = CASES[name]
    config_class, model_class = classes(family)
    shutil.rmtree(directory, ignore_errors=True)
    generator = torch.Generator().manual_seed(sorted(CASES).index(name))
    eager = dict(attn_implementation="eager")
    model = model_class._from_config(config_class(**{**COMMON, **config}), **eager)
    randomise(model, norm_mean, generator)
    model.to(torch.bfloat16).save_pretrained(directory)
    # Stored in bf16, then loaded to compute in float32: the oracle adds no rounding of its own.
    model = model_class.from_pretrained(directory, dtype=torch.float32, **eager).eval()
    ids = random_ids(NUM_TOKENS, generator)
    if "num_experts" in config:
        without_ties(model, ids, config["num_experts_per_tok"], generator)
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0]
    assert logits.isfinite().all() and logits.std() > 0.1, f"{name}: logits {logits.std()}"
    file = {"input_ids": ids.to(torch.int32), "logits": logits.contiguous()}
    save_file(file, directory / "expected.safetensors")
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{name}: {size >> 20} MiB, logits {logits.std():.2f}", flush=True)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    root, names = Path(sys.argv[1]), sys.argv[2:] or list(CASES)
    unknown = set(names) - set(CASES)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        make(name, root / name)


if __name__ == "__main__":
    main()
