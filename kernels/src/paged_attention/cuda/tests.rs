//! What is promised of paged attention on the GPU, against its formula in f64.

use candle_core::DType;

use super::plan::SPLIT;
use super::*;
use crate::cuda::Gpu;
use crate::cuda::testing::{close, download, gpu, upload};
use crate::paged_attention::{AttentionParams, reference};
use crate::testing::{assert_close, assert_error, random, random_tensor, values};

const HALVES: [DType; 2] = [DType::BF16, DType::F16];

/// The shapes of a layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    block_size: usize,
}

const LLAMA: Layer =
    Layer { dtype: DType::BF16, heads: 4, kv_heads: 2, head_size: 64, block_size: 16 };

/// What a case has of [`Params`], on the host.
#[derive(Clone, Copy, Debug)]
struct Rules {
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
}

const RULES: Rules = Rules { window: None, softcap: None, sinks: false };

/// What is in the memory that nobody wrote to.
const UNTOUCHED: f32 = 7.0;

/// A step on the device, and what has to come of it.
struct Step {
    layer: Layer,
    rules: Rules,
    scale: f32,
    rows: usize,
    /// Of each row.
    queries: usize,
    /// The queries, in rows with something behind them, as in projections.
    q: Array,
    stride: usize,
    k: Array,
    v: Array,
    tables: Array,
    max_blocks: usize,
    sinks: Array,
    slot: Array,
    context_len: Array,
    token: Array,
    out: Array,
    expected: Vec<f32>,
}

impl Step {
    /// One query for each entry of `contexts`, at its last position.
    fn new(gpu: &Gpu, layer: Layer, contexts: &[usize], rules: Rules) -> Self {
        Self::of_chunks(gpu, layer, contexts, 1, rules)
    }

    /// `queries` queries for each entry of `contexts`, at its last positions.
    ///
    /// Slots are in another order than rows, and there are more of them, and of tokens. Caches are
    /// NaN where no query of a row sees anything, and tables are nonsense there. A context of 0 is
    /// a row of padding. What is in a row depends on its context alone.
    fn of_chunks(
        gpu: &Gpu,
        layer: Layer,
        contexts: &[usize],
        queries: usize,
        rules: Rules,
    ) -> Self {
        let Layer { dtype, heads, kv_heads, head_size, block_size } = layer;
        let (rows, longest) = (contexts.len(), contexts.iter().copied().max().unwrap_or(0));
        let max_blocks = longest.div_ceil(block_size) + 1;
        let (slots, tokens) = (rows + 3, rows * queries + 2);
        let num_blocks = slots * max_blocks;
        let order = shuffled(num_blocks);
        let stride = (heads + 2 * kv_heads) * head_size;
        let sinks = random_tensor(9, &[heads], DType::F32);

        let mut q = vec![f32::NAN; tokens * stride];
        let block = block_size * head_size;
        let mut caches = [0; 2].map(|_| vec![f32::NAN; num_blocks * kv_heads * block]);
        let mut tables = vec![0xdead_beef_u32; slots * max_blocks];
        let mut expected = vec![UNTOUCHED; tokens * heads * head_size];
        let (mut slot, mut token) = (vec![PAD; rows], vec![PAD; rows]);
        let params = AttentionParams {
            scale: 1.7 / (head_size as f32).sqrt(),
            window: rules.window,
            softcap: rules.softcap,
            sinks: rules.sinks.then_some(&sinks),
        };
        for (row, &context) in contexts.iter().enumerate().filter(|&(_, &context)| context > 0) {
            let (s, t) = (slots - 1 - row, row * queries + 1);
            (slot[row], token[row]) = (s as u32, t as u32);
            let seed = 10 * context as u64;
            let rounded = |seed, shape: &[usize], factor: f64| {
                let x = (random_tensor(seed, shape, DType::F32) * factor).unwrap();
                values(&x.to_dtype(dtype).unwrap())
            };
            let query = rounded(seed, &[queries, heads, head_size], 3.0);
            let texts = [1, 2].map(|i| rounded(seed + i, &[context, kv_heads, head_size], 1.0));
            for (i, query) in query.chunks(heads * head_size).enumerate() {
                q[(t + i) * stride..][..query.len()].copy_from_slice(query);
            }
            let first = params.first_seen(context - queries);
            for position in first..context {
                let in_table = s * max_blocks + position / block_size;
                tables[in_table] = order[in_table] as u32;
                for head in 0..kv_heads {
                    let from = (position * kv_heads + head) * head_size;
                    let to = (order[in_table] * kv_heads + head) * block
                        + position % block_size * head_size;
                    for (cache, text) in caches.iter_mut().zip(&texts) {
                        cache[to..][..head_size].copy_from_slice(&text[from..][..head_size]);
                    }
                }
            }
            let shape = [heads, kv_heads, head_size];
            let out = reference::attention(&query, &texts[0], &texts[1], shape, &params);
            expected[t * heads * head_size..][..out.len()].copy_from_slice(&out);
        }
        let [k, v] = caches.map(|cache| upload(gpu, &cache, dtype));
        Self {
            layer,
            rules,
            scale: params.scale,
            rows,
            queries,
            q: upload(gpu, &q, dtype),
            stride,
            k,
            v,
            tables: gpu.upload(&tables).unwrap(),
            max_blocks,
            sinks: gpu.upload(&values(&sinks)).unwrap(),
            slot: gpu.upload(&slot).unwrap(),
            context_len: gpu
                .upload(&contexts.iter().map(|&context| context as u32).collect::<Vec<_>>())
                .unwrap(),
            token: gpu.upload(&token).unwrap(),
            out: upload(gpu, &vec![UNTOUCHED; expected.len()], dtype),
            expected,
        }
    }

    fn attention(&self) -> Attention<'_> {
        let Layer { heads, kv_heads, head_size, block_size, .. } = self.layer;
        let Rules { window, softcap, sinks } = self.rules;
        let (tables, max_blocks) = (&self.tables, self.max_blocks);
        Attention {
            q: Queries { values: &self.q, stride: self.stride, heads, head_size },
            cache: Cache { k: &self.k, v: &self.v, kv_heads, block_size, tables, max_blocks },
            params: Params {
                scale: self.scale,
                window,
                softcap,
                sinks: sinks.then_some(&self.sinks),
            },
            out: &self.out,
        }
    }

    fn decode_rows(&self) -> DecodeRows<'_> {
        DecodeRows { slot: &self.slot, context_len: &self.context_len, token: &self.token }
    }

    /// The result of [`decode()`], with room for `max_items` items.
    fn decode(&self, gpu: &Gpu, max_items: usize) -> Vec<f32> {
        let memory = gpu.upload(&vec![PAD; Plan::len(self.rows, max_items)]).unwrap();
        let plan = Plan::new(&memory, self.rows, max_items, self.rules.window).unwrap();
        plan.make(gpu, &self.decode_rows()).unwrap();
        let bytes = workspace_bytes(max_items, self.layer.heads, self.layer.head_size);
        let workspace = gpu.upload(&vec![0xff_u8; bytes]).unwrap();
        decode(gpu, &self.attention(), &plan, &workspace).unwrap();
        download(gpu, &self.out)
    }

    /// The result of [`simple()`].
    fn simple(&self, gpu: &Gpu) -> Vec<f32> {
        let [token, context_len] =
            [&self.token, &self.context_len].map(|array| gpu.download::<u32>(array).unwrap());
        let tokens = self.rows * self.queries + 2;
        let (mut row_of_token, mut positions) = (vec![PAD; tokens], vec![PAD; tokens]);
        for (row, &token) in token.iter().enumerate().filter(|&(_, &token)| token != PAD) {
            for i in 0..self.queries {
                row_of_token[token as usize + i] = row as u32;
                positions[token as usize + i] = context_len[row] - (self.queries - i) as u32;
            }
        }
        let rows = TokenRows {
            slot: &self.slot,
            row_of_token: &gpu.upload(&row_of_token).unwrap(),
            positions: &gpu.upload(&positions).unwrap(),
        };
        simple(gpu, &self.attention(), &rows).unwrap();
        download(gpu, &self.out)
    }
}

/// The numbers below `len`, in disorder.
fn shuffled(len: usize) -> Vec<usize> {
    let keys = random(5, len);
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    order
}

/// Asserts that each element is what is expected, but for two roundings to `dtype`: that of the
/// weights before they meet the values, none of which is above 1, and that of the result.
#[track_caller]
fn near(found: &[f32], expected: &[f32], dtype: DType, case: &str) {
    let tolerance = if dtype == DType::F16 { 1.0 / 1024.0 } else { 1.0 / 128.0 };
    assert_close(found, expected, tolerance, case);
}

fn check_decode(gpu: &Gpu, layer: Layer, contexts: &[usize], rules: Rules) {
    let step = Step::new(gpu, layer, contexts, rules);
    let found = step.decode(gpu, Plan::max_items(contexts.len()));
    near(&found, &step.expected, layer.dtype, &format!("{layer:?}, {contexts:?}, {rules:?}"));
}

fn check_simple(gpu: &Gpu, layer: Layer, contexts: &[usize], rules: Rules) {
    let step = Step::new(gpu, layer, contexts, rules);
    let found = step.simple(gpu);
    close(&found, &step.expected, layer.dtype, &format!("{layer:?}, {contexts:?}, {rules:?}"));
}

#[test]
fn decode_is_the_formula_around_the_ends_of_tiles_and_splits() {
    let Some(gpu) = gpu() else { return };
    let contexts = [1, 0, 15, 16, 17, 63, 64, 65, SPLIT - 1, SPLIT, SPLIT + 1, 3 * SPLIT + 20];
    for dtype in HALVES {
        check_decode(&gpu, Layer { dtype, ..LLAMA }, &contexts, RULES);
    }
    check_decode(&gpu, Layer { block_size: 48, ..LLAMA }, &contexts, RULES);
}

#[test]
fn decode_takes_all_its_head_sizes() {
    let Some(gpu) = gpu() else { return };
    for head_size in [64, 80, 96, 128, 256] {
        for dtype in HALVES {
            assert!(takes(dtype, head_size));
            let layer = Layer { dtype, head_size, ..LLAMA };
            check_decode(&gpu, layer, &[70, SPLIT + 40], RULES);
        }
    }
}

#[test]
fn decode_merges_any_number_of_splits() {
    let Some(gpu) = gpu() else { return };
    let layer = Layer { heads: 1, kv_heads: 1, ..LLAMA };
    for head_size in [80, 256] {
        let contexts = [2 * SPLIT, 4 * SPLIT + 1, 26 * SPLIT + 77];
        check_decode(&gpu, Layer { head_size, ..layer }, &contexts, RULES);
    }
}

#[test]
fn decode_takes_any_number_of_heads_for_a_kv_head() {
    let Some(gpu) = gpu() else { return };
    for group in [1, 2, 4, 5, 7, 8, 16, 17, 40] {
        let layer = Layer { heads: 3 * group, kv_heads: 3, ..LLAMA };
        check_decode(&gpu, layer, &[33, SPLIT + 3], Rules { sinks: true, ..RULES });
    }
}

/// No window, windows that begin inside of a tile, at the ends of tiles and splits, and one that is
/// longer than any context; each with a cap and sinks and without.
fn all_rules() -> Vec<Rules> {
    let split = SPLIT as u32;
    let windows = [1, 5, 16, 20, split - 1, split, split + 1, split + 50, 100_000, u32::MAX];
    let windows = windows.map(Some);
    let of = |window| {
        [(None, false), (Some(0.7), false), (None, true), (Some(3.0), true)]
            .map(|(softcap, sinks)| Rules { window, softcap, sinks })
    };
    [None].into_iter().chain(windows).flat_map(of).collect()
}

#[test]
fn decode_sees_what_the_window_shows_under_caps_and_sinks() {
    let Some(gpu) = gpu() else { return };
    for rules in all_rules() {
        check_decode(&gpu, LLAMA, &[1, 19, SPLIT + 1, 2 * SPLIT + 100], rules);
    }
}

#[test]
fn a_row_has_the_same_bits_beside_others_and_alone() {
    let Some(gpu) = gpu() else { return };
    let contexts = [40, 2 * SPLIT + 33, 0, SPLIT + 1, 7];
    let result = |contexts: &[usize]| {
        let step = Step::new(&gpu, LLAMA, contexts, RULES);
        step.decode(&gpu, Plan::max_items(contexts.len()))
    };
    let (together, token) = (result(&contexts), LLAMA.heads * LLAMA.head_size);
    for (row, &context) in contexts.iter().enumerate() {
        // The query of row r is token r + 1.
        let beside = &together[(row + 1) * token..][..token];
        assert_eq!(beside, &result(&[context])[token..][..token], "context {context}");
    }
}

#[test]
fn splits_grow_where_there_would_be_too_many() {
    let Some(gpu) = gpu() else { return };
    let contexts = [5 * SPLIT + 1, 0, 30, 4 * SPLIT, 2 * SPLIT + 9];
    for rules in [RULES, Rules { window: Some(700), ..RULES }] {
        let step = Step::new(&gpu, LLAMA, &contexts, rules);
        for max_items in [5, 6, 8, 100] {
            let found = step.decode(&gpu, max_items);
            near(&found, &step.expected, LLAMA.dtype, &format!("{max_items} items, {rules:?}"));
        }
    }
}

/// The items of rows with these contexts, as slot, token, begin, end, partial; slots are 100 and
/// more, and the last is right.
fn planned(gpu: &Gpu, contexts: &[u32], window: Option<u32>, max_items: usize) -> Vec<[u32; 5]> {
    let rows = contexts.len();
    let numbers = |offset: u32| (0..rows as u32).map(|row| row + offset).collect::<Vec<_>>();
    let memory = gpu.upload(&vec![9_u32; Plan::len(rows, max_items)]).unwrap();
    let plan = Plan::new(&memory, rows, max_items, window).unwrap();
    let rows = DecodeRows {
        slot: &gpu.upload(&numbers(100)).unwrap(),
        context_len: &gpu.upload(contexts).unwrap(),
        token: &gpu.upload(&numbers(5000)).unwrap(),
    };
    plan.make(gpu, &rows).unwrap();
    let num_items = gpu.download::<u32>(&plan.num_items).unwrap()[0] as usize;
    let items = gpu.download::<u32>(&plan.items).unwrap();
    let (partials, first) = (&plan.row_partials, &plan.first_item);
    let (partials, first) =
        (gpu.download::<u32>(partials).unwrap(), gpu.download::<u32>(first).unwrap());
    let items: Vec<[u32; 5]> =
        items.chunks(8).take(num_items).map(|item| item[..5].try_into().unwrap()).collect();
    for (i, [slot, token, _, _, partial]) in items.iter().enumerate() {
        let row = (slot - 100) as usize;
        assert_eq!(*token, slot + 4900, "the token of item {i}");
        let in_row = i as u32 - first[row];
        let expected =
            if partials[row + 1] == partials[row] { PAD } else { partials[row] + in_row };
        assert_eq!(*partial, expected, "where item {i} goes");
    }
    items
}

#[test]
fn a_plan_covers_what_is_seen_once_and_in_order() {
    let Some(gpu) = gpu() else { return };
    let contexts: Vec<u32> = (0..2500).map(|i| i * 7919 % 1500).collect();
    for (window, max_items) in
        [(None, 20_000), (None, 4096), (Some(1), 4096), (Some(300), 5000), (None, 2500)]
    {
        let items = planned(&gpu, &contexts, window, max_items);
        assert!(items.len() <= max_items);
        let mut items = items.into_iter().peekable();
        for (row, &context) in contexts.iter().enumerate() {
            let mut position = window.map_or(0, |window| context.saturating_sub(window));
            while position < context {
                let [slot, _, begin, end, _] = items.next().unwrap();
                assert_eq!((slot as usize, begin), (row + 100, position));
                assert!(end > begin && end <= context);
                assert!(end == context || end % SPLIT as u32 == 0);
                position = end;
            }
        }
        assert_eq!(items.next(), None);
    }
    // One split has no partial sums, and those of the others are numbered without gaps.
    let split = SPLIT as u32;
    let found = planned(&gpu, &[split, 0, split + 1, 2 * split], None, 100);
    let partials: Vec<u32> = found.iter().map(|item| item[4]).collect();
    assert_eq!(partials, [PAD, 0, 1, 2, 3]);
}

#[test]
fn simple_takes_every_type_head_size_and_group() {
    let Some(gpu) = gpu() else { return };
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for head_size in [1, 7, 33, 64, 128, 129, 192, 512] {
            for (heads, kv_heads) in [(1, 1), (6, 2)] {
                let layer = Layer { dtype, heads, kv_heads, head_size, block_size: 32 };
                check_simple(&gpu, layer, &[1, 0, 15, 16, 17, 70], RULES);
            }
        }
    }
}

#[test]
fn simple_sees_what_the_window_shows_under_caps_and_sinks() {
    let Some(gpu) = gpu() else { return };
    for rules in all_rules() {
        let layer = Layer { dtype: DType::F32, head_size: 20, ..LLAMA };
        check_simple(&gpu, layer, &[1, 19, SPLIT + 1], rules);
    }
}

#[test]
fn simple_attends_to_a_chunk_causally() {
    let Some(gpu) = gpu() else { return };
    for window in [None, Some(3), Some(20)] {
        let (layer, rules) = (Layer { head_size: 40, ..LLAMA }, Rules { window, ..RULES });
        let step = Step::of_chunks(&gpu, layer, &[9, 0, 50], 9, rules);
        close(&step.simple(&gpu), &step.expected, layer.dtype, &format!("{window:?}"));
    }
}

#[test]
fn a_broken_query_breaks_its_own_row_alone() {
    let Some(gpu) = gpu() else { return };
    let step = Step::new(&gpu, LLAMA, &[40, SPLIT + 40], RULES);
    let token = LLAMA.heads * LLAMA.head_size;
    // The first query head of token 2, which is row 1.
    let mut q = download(&gpu, &step.q);
    q[2 * step.stride] = f32::NAN;
    let step = Step { q: upload(&gpu, &q, LLAMA.dtype), ..step };
    for found in [step.decode(&gpu, 10), step.simple(&gpu)] {
        let (broken, whole) = found[2 * token..].split_at(LLAMA.head_size);
        assert!(broken.iter().all(|x| x.is_nan()));
        let expected = &step.expected;
        near(&found[..2 * token], &expected[..2 * token], LLAMA.dtype, "the other row");
        near(whole, &expected[2 * token + LLAMA.head_size..], LLAMA.dtype, "the other heads");
    }
}

#[test]
fn wrong_arguments_are_named() {
    let Some(gpu) = gpu() else { return };
    let step = Step::new(&gpu, LLAMA, &[40, 50], RULES);
    let memory = gpu.zeros(DType::U32, Plan::len(2, 10)).unwrap();
    let plan = Plan::new(&memory, 2, 10, None).unwrap();
    let bytes = workspace_bytes(10, LLAMA.heads, LLAMA.head_size);
    let (workspace, right) = (gpu.zeros(DType::U8, bytes).unwrap(), step.attention());
    let run = |attention: &Attention<'_>| decode(&gpu, attention, &plan, &workspace);
    let short = gpu.zeros(LLAMA.dtype, step.q.len() - step.stride).unwrap();
    let q = Queries { values: &short, ..right.q };
    let expected = "q: expected shape [4, 4, 64, rows 512], found [1536]";
    assert_error(run(&Attention { q, ..right }), expected);
    let q = Queries { heads: 3, ..right.q };
    assert_error(run(&Attention { q, ..right }), "out: expected shape [5, 3, 64], found [1024]");
    let cache = Cache { kv_heads: 3, ..right.cache };
    let expected = "heads: expected a multiple of 3 kv heads, found 4";
    assert_error(run(&Attention { cache, ..right }), expected);
    let cache = Cache { block_size: 24, ..right.cache };
    let expected = "block_size: expected a multiple of 16, found 24";
    assert_error(run(&Attention { cache, ..right }), expected);
    let cache = Cache { v: &short, ..right.cache };
    let expected = "cache_v: expected shape [25, 2, 16, 64], found [1536]";
    assert_error(run(&Attention { cache, ..right }), expected);
    let params = Params { window: Some(0), ..right.params };
    assert_error(run(&Attention { params, ..right }), "window: expected at least 1, found 0");
    let params = Params { window: Some(5), ..right.params };
    let expected = "window: expected that of the plan, None, found Some(5)";
    assert_error(run(&Attention { params, ..right }), expected);
    let params = Params { softcap: Some(0.0), ..right.params };
    assert_error(run(&Attention { params, ..right }), "softcap: expected above 0, found 0");
    let params = Params { sinks: Some(&workspace), ..right.params };
    assert_error(run(&Attention { params, ..right }), "sinks: expected dtype f32, found U8");
    let found =
        decode(&gpu, &right, &plan, &workspace.slice(0..bytes - 1)).map_err(|e| e.to_string());
    assert_eq!(found, Err("workspace: expected shape [10560], found [10559]".to_owned()));
    assert_error(
        Plan::new(&memory.slice(0..Plan::len(2, 1)), 2, 1, None),
        "max_items: expected at least 2 rows, found 1",
    );
    let layer = Layer { head_size: 72, ..LLAMA };
    assert_error(
        decode(&gpu, &Step::new(&gpu, layer, &[1, 2], RULES).attention(), &plan, &workspace),
        "head_size: expected one of [64, 80, 96, 128, 256], bf16 or f16, found 72, bf16",
    );
}
