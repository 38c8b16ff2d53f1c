//! Attention over a cache as large as a model's, with the heads of Llama 3.1 8B.

use millstream_kernels::paged_attention::cuda::{
    Attention, Cache, ChunkRows, DecodeRows, Params, Plan, Queries, TILE_QUERIES, decode, prefill,
    workspace_bytes,
};

use candle_core::DType;

use crate::measure::{Bench, Result, Work, bytes};

const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_SIZE: usize = 128;
const BLOCK: usize = 16;
/// Elements of a position's keys, or values.
const POSITION: usize = KV_HEADS * HEAD_SIZE;

const BATCHES: [usize; 4] = [1, 8, 64, 256];
const CONTEXTS: [usize; 3] = [512, 4096, 32_768];
const PROMPTS: [usize; 2] = [2048, 8192];

pub(crate) fn run(bench: &Bench) -> Result {
    for &context in bench.sizes(&CONTEXTS) {
        for &batch in bench.sizes(&BATCHES) {
            decodes(bench, batch, context / bench.size(1, 8))?;
        }
    }
    for &prompt in bench.sizes(&PROMPTS) {
        prompts(bench, prompt / bench.size(1, 16))?;
    }
    Ok(())
}

/// Blocks of slots, neighbours in a sequence far apart in memory: `blocks` of each of `slots`.
fn tables(slots: usize, blocks: usize) -> Vec<u32> {
    let tables = (0..slots).flat_map(|slot| (0..blocks).map(move |at| (at * slots + slot) as u32));
    tables.collect()
}

fn params() -> Params<'static> {
    let scale = (HEAD_SIZE as f32).powf(-0.5);
    Params { scale, window: None, softcap: None, sinks: None }
}

fn decodes(bench: &Bench, batch: usize, context: usize) -> Result {
    let shape = format!("R={batch} context={context} H={HEADS} K={KV_HEADS} D={HEAD_SIZE} bf16");
    let gpu = &bench.gpu;
    let max_blocks = context.div_ceil(BLOCK);
    let len = batch * max_blocks * BLOCK * POSITION;
    let copies = bench.copies(2 * 2 * len);
    // Keys and values, and a GiB for what else there is.
    if (2 * 2 * copies * len) as u64 + (1 << 30) > gpu.free_memory()?.0 {
        eprintln!("left out, because the GPU's memory is too small: decode attention {shape}");
        return Ok(());
    }
    let (k, v) = (bench.random(copies * len)?, bench.random(copies * len)?);
    let layers: Vec<_> = (0..copies)
        .map(|copy| copy * len..(copy + 1) * len)
        .map(|part| (k.slice(part.clone()), v.slice(part)))
        .collect();
    let tables = gpu.upload(&tables(batch, max_blocks))?;
    let numbers = gpu.upload(&(0..batch as u32).collect::<Vec<_>>())?;
    let lengths = gpu.upload(&vec![context as u32; batch])?;
    let rows = DecodeRows { slot: &numbers, context_len: &lengths, token: &numbers };
    let max_items = Plan::max_items(batch);
    let memory = gpu.zeros(DType::U32, Plan::len(batch, max_items))?;
    let plan = Plan::new(&memory, batch, max_items, None)?;
    let workspace = gpu.zeros(DType::U8, workspace_bytes(max_items, HEADS, HEAD_SIZE))?;
    let stride = (HEADS + 2 * KV_HEADS) * HEAD_SIZE;
    let (q, out) = (bench.random(batch * stride)?, bench.random(batch * HEADS * HEAD_SIZE)?);

    // Once a step, for all layers.
    bench.kernel(("attention, plan of decode", &shape), bytes(0), 1, |_| plan.make(gpu, &rows))?;
    let work = Work {
        bytes: 2.0 * (batch * 2 * (context * POSITION + HEADS * HEAD_SIZE)) as f64,
        flops: 4.0 * (batch * HEADS * HEAD_SIZE * context) as f64,
    };
    bench.kernel(("attention, decode", &shape), work, copies, |call| {
        let (k, v) = &layers[call % copies];
        let queries = Queries { values: &q, stride, heads: HEADS, head_size: HEAD_SIZE };
        let cache =
            Cache { k, v, kv_heads: KV_HEADS, block_size: BLOCK, tables: &tables, max_blocks };
        let attention = Attention { q: queries, cache, params: params(), out: &out };
        decode(gpu, &attention, &plan, &workspace)
    })
}

/// A prompt that is computed at once.
fn prompts(bench: &Bench, tokens: usize) -> Result {
    let gpu = &bench.gpu;
    let max_blocks = tokens.div_ceil(BLOCK);
    let len = max_blocks * BLOCK * POSITION;
    let (k, v) = (bench.random(len)?, bench.random(len)?);
    let tables = gpu.upload(&tables(1, max_blocks))?;
    let zero = gpu.upload(&[0_u32])?;
    let rows =
        ChunkRows { slot: &zero, start: &zero, len: &gpu.upload(&[tokens as u32])?, first: &zero };
    // Those that see most first.
    let tiles = (0..tokens).step_by(TILE_QUERIES).rev().flat_map(|first| [0, first as u32]);
    let tiles = gpu.upload(&tiles.collect::<Vec<_>>())?;
    let stride = (HEADS + 2 * KV_HEADS) * HEAD_SIZE;
    let (q, out) = (bench.random(tokens * stride)?, bench.random(tokens * HEADS * HEAD_SIZE)?);
    let queries = Queries { values: &q, stride, heads: HEADS, head_size: HEAD_SIZE };
    let cache =
        Cache { k: &k, v: &v, kv_heads: KV_HEADS, block_size: BLOCK, tables: &tables, max_blocks };
    let attention = Attention { q: queries, cache, params: params(), out: &out };
    let shape = format!("T={tokens} causal H={HEADS} K={KV_HEADS} D={HEAD_SIZE} bf16");
    let work = Work {
        bytes: 2.0 * (2 * tokens * (POSITION + HEADS * HEAD_SIZE)) as f64,
        // A query sees half of the prompt on average.
        flops: 2.0 * (HEADS * HEAD_SIZE) as f64 * tokens as f64 * (tokens + 1) as f64,
    };
    bench.kernel(("attention, prefill", &shape), work, 1, |_| {
        prefill(gpu, &attention, &rows, &tiles)
    })
}
