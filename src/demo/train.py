"""Trains the demo model, tokenizer and weights, from the generated corpus.

    pip install torch tokenizers safetensors numpy
    python train.py --work /tmp/demo --out model

One command does everything: the tokenizer (a byte-level BPE), the tokens, the training, the five
files in `--out`. It writes a checkpoint to `--work` every few minutes and goes on from there when
it is started again; `--export-only` writes the five files from the last checkpoint.
Two cores train 4,000 to 5,500 tokens per second when nothing else runs; README.md tells how the
weights in the repository came about.

The model is a plain Llama: RMS norm, rotary positions (half-split), grouped queries, SwiGLU, tied
head. The matrices of layers 2 and up are trained with Muon (momentum, then orthogonalised), the
rest with AdamW.
A row of a batch is one document from its first token, as at inference; nothing is packed.
"""

import argparse
import itertools
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

import corpus

SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BEGIN, END = 0, 1
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>' + ((message['content'] or '') | trim) + eos_token }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<|user|>' + (message['content'] | trim) + eos_token }}"
    "{% else %}"
    "{{ raise_exception('the demo model knows the roles system, user, assistant and tool, not ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass
class Config:
    hidden: int = 256
    layers: int = 5
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    intermediate: int = 512
    vocab: int = 1792  # rows of the embedding; the tokenizer has a few tokens less
    tokens: int = 1780  # what the tokenizer is trained to
    theta: float = 10000.0
    eps: float = 1e-5
    max_positions: int = 1024


# ---- the model, with Hugging Face's names ---------------------------------------------------


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


def rotate(x, cos, sin):
    """Rotary positions, half-split: dimension i turns with dimension i + D/2."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x, cos, sin):
        rows, length, _ = x.shape
        q, k, v = (p(x).view(rows, length, -1, self.c.head_dim).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))  # [rows, H or K, length, D]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.c.heads // self.c.kv_heads
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class Mlp(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.down_proj = nn.Linear(c.intermediate, c.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.input_layernorm = RmsNorm(c.hidden, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RmsNorm(c.hidden, c.eps)
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RmsNorm(c.hidden, c.eps)
        nn.init.normal_(self.embed_tokens.weight, std=0.06)
        for layer in self.layers:  # a layer starts as the identity
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)

    def forward(self, ids):
        """The hidden states after the last norm; `head` turns those that matter into logits."""
        half = torch.arange(0, self.c.head_dim, 2, dtype=torch.float32) / self.c.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]), self.c.theta ** -half)
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def head(self, x):
        return F.linear(x, self.embed_tokens.weight)


@torch.no_grad()
def plant_copying(model: Llama) -> None:
    """Starts the model with an induction head: "after A came B, here is A again, so B".

    Such heads form by themselves, but only after more tokens than we could wait for. One needs
    two layers. In layer 0, head 0 looks at the token before (head 1 at the one before that): all
    embeddings share the direction `u`, queries and keys see only `u`, and the query is turned by
    one position, so that the rotary score has its peak there. It writes what it saw into
    directions `seen`. In layer 1, two heads compare the present token (`content`) with `seen`, in
    the slow rotary dimensions, where distance matters little, and copy the token they find.
    Training is free to change all of it.
    """
    c, d, half = model.c, model.c.head_dim, model.c.head_dim // 2
    basis = torch.linalg.qr(torch.randn(c.hidden, 5 * d + 1))[0].T
    u, content, seen, seen_two, copied = basis[0], *basis[1:].split(d)[:4]
    embed = model.embed_tokens.weight
    norm = embed.norm(dim=1).mean()
    embed += norm * u
    turn = c.theta ** (-torch.arange(half) / half)  # radians per position
    first, second = model.layers[0].self_attn, model.layers[1].self_attn
    for head, back in ((0, 1), (1, 2)):
        rows = torch.cat((torch.cos(-back * turn), torch.sin(-back * turn)))
        first.q_proj.weight[head * d:(head + 1) * d] = 0.8 * torch.outer(rows, u)
    first.k_proj.weight[:d] = 0.8 * torch.outer(torch.cat((torch.ones(half), torch.zeros(half))), u)
    first.v_proj.weight[:d] = content
    first.o_proj.weight[:, :d] = 0.25 * norm * seen.T
    first.o_proj.weight[:, d:2 * d] = 0.25 * norm * seen_two.T
    slow = torch.cat((torch.arange(half // 2, half), torch.arange(half + half // 2, d)))
    for group in range(2):  # each compares its half of the content
        part = slice(group * half, (group + 1) * half)
        for matrix, source in ((second.q_proj.weight, content), (second.k_proj.weight, seen)):
            heads = c.heads // c.kv_heads if matrix is second.q_proj.weight else 1
            at = group * heads * d
            matrix[at:at + d] = 0
            matrix[at + slow] = 2.8 * source[part]
        second.v_proj.weight[group * d:(group + 1) * d] = copied
        head = group * (c.heads // c.kv_heads)
        second.o_proj.weight[:, head * d:(head + 1) * d] = 2.5 * norm * copied.T


# ---- tokenizer and tokens -------------------------------------------------------------------


def train_tokenizer(c: Config, seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=c.tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    texts = (s.text for d in corpus.documents(seed, 30000) for s in d)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, document: list[corpus.Segment], limit: int):
    """Token ids, and for each the weight of predicting it."""
    ids, weights = [], []
    if document[0].role != "raw":
        ids, weights = [BEGIN], [0.0]
    for segment, encoding in zip(document, tokenizer.encode_batch([s.text for s in document])):
        if segment.role != "raw":
            ids.append(tokenizer.token_to_id(f"<|{segment.role}|>"))
            weights.append(0.0)
        ids += encoding.ids + [END]
        weights += [segment.weight] * (len(encoding.ids) + 1)
    return ids[:limit], weights[:limit]


def micro_batches(tokenizer: Tokenizer, c: Config, seed: int, num_documents: int, size: int):
    """Batches of about `size` tokens, each of documents of similar length, in random order."""
    r = random.Random(seed)
    window = []
    for i, document in enumerate(corpus.documents(seed, num_documents)):
        window.append(encode(tokenizer, document, c.max_positions))
        if len(window) < 1024 and i + 1 < num_documents:
            continue
        window.sort(key=lambda d: len(d[0]) + r.random())
        batches, batch = [], []
        for d in window:
            if batch and (len(batch) + 1) * len(d[0]) > size:
                batches.append(batch)
                batch = []
            batch.append(d)
        batches.append(batch)
        r.shuffle(batches)
        yield from batches
        window = []


def tensors(batch):
    length = max(len(ids) for ids, _ in batch)
    ids = torch.full((len(batch), length), END)
    weights = torch.zeros(len(batch), length)
    for row, (i, w) in enumerate(batch):
        ids[row, :len(i)] = torch.tensor(i)
        weights[row, :len(w)] = torch.tensor(w)
    return ids, weights


# Each thread runs whole micro-batches on one core: threads inside an operation would wait for each
# other thousands of times per step, which is slow as soon as the machine has other work.
THREADS = ThreadPoolExecutor(2)


# ---- training -------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by Newton-Schulz steps (Jordan et al., 2024)."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        for p in group["params"]:
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
        list(THREADS.map(lambda p: self.move(p, group), group["params"]))

    @torch.no_grad()
    def move(self, p, group):
        update = orthogonal(p.grad.lerp(self.state[p]["momentum"], group["momentum"]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(g):
    """The nearest matrix with singular values about 1, by five steps of a quintic iteration."""
    x = g.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return (x.T if tall else x).float()


def loss_of(model, batch):
    """The weighted sum of a batch's losses."""
    ids, weights = tensors(batch)
    targets, weights = ids[:, 1:], weights[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids[:, :-1])
        counted = weights > 0
        logits = model.head(hidden[counted])
    losses = F.cross_entropy(logits.float(), targets[counted], reduction="none")
    return (losses * weights[counted]).sum()


def rate(progress: float) -> float:
    """Warm up, stay, then go down linearly over the last half."""
    return min(1.0, progress / 0.02 + 0.02, (1.0 - progress) / 0.5 + 0.01)


def optimizers_of(model: Llama) -> list[tuple]:
    """Each optimizer, with its full learning rate early (first 30 %) and later.

    Layers 0 and 1 and the embeddings learn gently, with AdamW, so that the planted heads outlive
    the time when everything else is still noise; Muon moves the other matrices.
    """
    matrices = [p for p in model.layers[2:].parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    return [(Muon(matrices, lr=0.0), 0.02, 0.015), (adam, 0.001, 0.002)]


def step(model: Llama, optimizers: list[tuple], chunk: list, progress: float) -> float:
    """Learns from a few micro-batches at once; returns their mean loss."""
    total = sum(sum(weights[1:]) for batch in chunk for _, weights in batch)

    def backward(batch) -> float:
        loss = loss_of(model, batch) / total
        loss.backward()
        return loss.item()

    loss = sum(THREADS.map(backward, chunk))
    for optimizer, early, later in optimizers:
        if isinstance(optimizer, torch.optim.AdamW):
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.param_groups[0]["lr"] = (early if progress < 0.3 else later) * rate(progress)
        optimizer.step()
        optimizer.zero_grad()
    return loss


def train(model: Llama, tokenizer: Tokenizer, args) -> None:
    optimizers = optimizers_of(model)
    state = dict(step=0, documents=0, tokens=0, loss=None)
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        for (optimizer, *_), its_state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(its_state)
        state = saved["state"]
    batches = micro_batches(tokenizer, model.c, args.seed, args.documents, args.micro)
    skipped = 0
    while skipped < state["documents"]:  # what the checkpoint has read already
        skipped += len(next(batches))
    last_save = last_print = time.time()
    while chunk := list(itertools.islice(batches, args.accumulate)):
        loss = step(model, optimizers, chunk, state["documents"] / args.documents)
        state["step"] += 1
        state["documents"] += sum(map(len, chunk))
        state["tokens"] += sum(len(ids) for batch in chunk for ids, _ in batch)
        state["loss"] = loss if state["loss"] is None else 0.95 * state["loss"] + 0.05 * loss
        if time.time() - last_print > 15:
            print(time.strftime("%H:%M:%S"), state, flush=True)
            last_print = time.time()
        if time.time() - last_save > 120:
            save(model, optimizers, state, checkpoint)
            last_save = time.time()
    save(model, optimizers, state, checkpoint)


def save(model: Llama, optimizers: list[tuple], state: dict, checkpoint: Path) -> None:
    parts = dict(model=model.state_dict(), optimizers=[o.state_dict() for o, *_ in optimizers], state=state)
    write(checkpoint, lambda path: torch.save(parts, path))


# ---- the five files -------------------------------------------------------------------------


def export(model, tokenizer: Tokenizer, out: Path) -> None:
    c = model.c
    out.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": p.to(torch.bfloat16).contiguous() for name, p in model.state_dict().items()}
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", torch_dtype="bfloat16",
        vocab_size=c.vocab, hidden_size=c.hidden, intermediate_size=c.intermediate,
        num_hidden_layers=c.layers, num_attention_heads=c.heads, num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim, hidden_act="silu", rms_norm_eps=c.eps, rope_theta=c.theta,
        max_position_embeddings=c.max_positions, tie_word_embeddings=True, attention_bias=False,
        mlp_bias=False, bos_token_id=BEGIN, eos_token_id=END, use_cache=True)
    generation = dict(bos_token_id=BEGIN, eos_token_id=END, pad_token_id=END, do_sample=True,
                      temperature=0.6, top_p=0.95)
    tokenizer_config = dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=SPECIAL[BEGIN], eos_token=SPECIAL[END],
        pad_token=SPECIAL[END], add_bos_token=False, add_eos_token=False,
        clean_up_tokenization_spaces=False, model_max_length=c.max_positions,
        chat_template=CHAT_TEMPLATE)
    write(out / "model.safetensors", lambda p: save_file(weights, p, metadata={"format": "pt"}))
    write(out / "tokenizer.json", lambda p: Path(p).write_text(tokenizer.to_str(pretty=False) + "\n"))
    for name, value in [("config", config), ("generation_config", generation),
                        ("tokenizer_config", tokenizer_config)]:
        text = json.dumps(value, indent=2) + "\n"
        write(out / f"{name}.json", lambda p: Path(p).write_text(text))
    size = sum(f.stat().st_size for f in out.iterdir())
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {size} bytes in {out}")


def write(path: Path, put) -> None:
    """A reader sees the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    put(str(temporary))
    temporary.chmod(0o644)
    os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("/tmp/demo"), help="checkpoints, tokenizer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--documents", type=int, default=70000)
    parser.add_argument("--micro", type=int, default=1280, help="tokens of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    c = Config()
    if not (args.work / "tokenizer.json").exists():
        train_tokenizer(c, args.seed).save(str(args.work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = Llama(c)
    plant_copying(model)
    if args.export_only:
        saved = torch.load(args.work / "checkpoint.pt")
        model.load_state_dict(saved["model"])
        print(saved["state"])
    else:
        train(model, tokenizer, args)
    export(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
