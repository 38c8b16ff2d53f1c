use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::super::{Cache, PAD, Params, Queries};
use super::*;
use crate::cuda::testing::{download, gpu, upload};
use crate::paged_attention::{AttentionParams, reference};
use crate::testing::{assert_close, assert_error, random};

const HALVES: [DType; 2] = [DType::BF16, DType::F16];

/// What tokens hold that no row owns.
const UNTOUCHED: f32 = 7.0;

/// Rows of (start, len) and what they go through.
#[derive(Clone, Copy, Debug)]
struct Case<'a> {
    rows: &'a [(u32, u32)],
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    block_size: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    with_sinks: bool,
    /// Keys are multiplied with this to the power of their position over 64.
    growth: f32,
}

const PLAIN: Case<'_> = Case {
    rows: &[(0, 65), (100, 130), (16, 17)],
    dtype: DType::BF16,
    heads: 2,
    kv_heads: 1,
    head_size: 64,
    block_size: 16,
    window: None,
    softcap: None,
    with_sinks: false,
    growth: 1.0,
};

const SCALE: f32 = 0.2;

/// One sequence, rounded to the dtype.
struct Text {
    /// `[context, H, D]`
    q: Vec<f32>,
    /// `[context, K, D]`
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case<'_> {
    /// The sequence of which row `row` computes a part: one of 1000 positions, cut off.
    fn text(&self, row: usize) -> Text {
        let (seed, len) = (10 * row as u64, self.context(row));
        let (query, key) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let round = |x: f32| match self.dtype {
            DType::F16 => f16::from_f32(x).to_f32(),
            _ => bf16::from_f32(x).to_f32(),
        };
        let vectors = |seed, size: usize, factor: &dyn Fn(usize) -> f32| {
            let all = random(seed, len * size).into_iter().enumerate();
            all.map(|(i, x)| round(x * factor(i / size))).collect::<Vec<_>>()
        };
        let grown = |position: usize| self.growth.powf(position as f32 / 64.0);
        Text {
            q: vectors(seed, query, &|_| 3.0),
            k: vectors(seed + 1, key, &grown),
            v: vectors(seed + 2, key, &|_| 1.0),
        }
    }

    fn context(&self, row: usize) -> usize {
        let (start, len) = self.rows[row];
        (start + len) as usize
    }

    /// Elements of a token's projections.
    fn stride(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_size
    }

    /// The first position that any query of a row sees.
    fn first_seen(&self, row: usize) -> usize {
        self.window.map_or(0, |window| (self.rows[row].0 + 1).saturating_sub(window) as usize)
    }

    fn sinks(&self) -> Option<Vec<f32>> {
        let sinks = random(99, self.heads).into_iter().map(|x| 6.0 * x).collect();
        self.with_sinks.then_some(sinks)
    }

    /// What the formula says, row by row.
    fn expected(&self) -> Vec<Vec<f32>> {
        let sinks = self.sinks().map(|sinks| Tensor::new(sinks, &Device::Cpu).unwrap());
        let params = AttentionParams {
            scale: SCALE,
            window: self.window,
            softcap: self.softcap,
            sinks: sinks.as_ref(),
        };
        let shape = [self.heads, self.kv_heads, self.head_size];
        let row = |row| {
            let text = self.text(row);
            let q = &text.q[self.rows[row].0 as usize * self.heads * self.head_size..];
            reference::attention(q, &text.k, &text.v, shape, &params)
        };
        (0..self.rows.len()).map(row).collect()
    }
}

/// What a step reads, on the host: tables in a random order, and NaN wherever nobody may look.
struct Host {
    /// `[T, (H + 2K) * D]`
    q: Vec<f32>,
    /// Keys and values `[N, K, B, D]`.
    caches: [Vec<f32>; 2],
    tables: Vec<u32>,
    max_blocks: usize,
    /// The first token of each row.
    first: Vec<usize>,
    tokens: usize,
}

/// What a table has where no query sees anything.
const NO_BLOCK: u32 = 0xdead_beef;

impl Host {
    /// Rows come in the reverse order of slots and tokens; a token of nobody is before each.
    fn new(case: &Case<'_>) -> Self {
        let Case { rows, heads, kv_heads, head_size, block_size, .. } = *case;
        let blocks = (0..rows.len()).map(|row| case.context(row).div_ceil(block_size));
        let (max_blocks, num_blocks) = (blocks.clone().max().unwrap(), blocks.sum::<usize>() + 1);
        let keys = random(7, num_blocks);
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        free.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));

        let tokens = rows.iter().map(|&(_, len)| len as usize + 1).sum();
        let cache = num_blocks * kv_heads * block_size * head_size;
        let mut host = Self {
            q: vec![f32::NAN; tokens * case.stride()],
            caches: [(); 2].map(|()| vec![f32::NAN; cache]),
            tables: vec![NO_BLOCK; (rows.len() + 1) * max_blocks],
            max_blocks,
            first: vec![0; rows.len()],
            tokens,
        };
        let (mut token, query) = (0, heads * head_size);
        for row in (0..rows.len()).rev() {
            let text = case.text(row);
            token += 1;
            host.first[row] = token;
            for q in text.q.chunks_exact(query).skip(rows[row].0 as usize) {
                host.q[token * case.stride()..][..query].copy_from_slice(q);
                token += 1;
            }
            for position in case.first_seen(row)..case.context(row) {
                let entry = (rows.len() - row) * max_blocks + position / block_size;
                let block = &mut host.tables[entry];
                if *block == NO_BLOCK {
                    *block = free.pop().unwrap();
                }
                let block = *block as usize;
                for (cache, vectors) in host.caches.iter_mut().zip([&text.k, &text.v]) {
                    for head in 0..kv_heads {
                        let to = (block * kv_heads + head) * block_size + position % block_size;
                        let from = &vectors[(position * kv_heads + head) * head_size..];
                        cache[to * head_size..][..head_size].copy_from_slice(&from[..head_size]);
                    }
                }
            }
        }
        host
    }
}

/// The same on the device.
struct Step {
    q: Array,
    k: Array,
    v: Array,
    tables: Array,
    max_blocks: usize,
    sinks: Option<Array>,
    /// Slot, start, len and first token of the rows, and a row of padding.
    rows: [Array; 4],
    first: Vec<usize>,
    tiles: Array,
    out: Array,
}

impl Step {
    fn new(gpu: &Gpu, case: &Case<'_>) -> Self {
        let (host, rows, num) = (Host::new(case), case.rows, case.rows.len() as u32);
        let columns = [
            (0..num).map(|row| num - row).chain([PAD]).collect::<Vec<_>>(),
            rows.iter().map(|&(start, _)| start).chain([0]).collect(),
            rows.iter().map(|&(_, len)| len).chain([0]).collect(),
            host.first.iter().map(|&first| first as u32).chain([PAD]).collect(),
        ];
        let tiles_of = |(row, &(_, len)): (u32, &(u32, u32))| {
            (0..len).step_by(TILE_QUERIES).map(move |first| [row, first])
        };
        let mut tiles: Vec<_> = (0..).zip(rows).flat_map(tiles_of).collect();
        // Padding: a row of it, no row, and behind the end of a row.
        tiles.extend([[num, 0], [PAD, 0], [0, rows[0].1]]);
        let [k, v] = host.caches.map(|cache| upload(gpu, &cache, case.dtype));
        let out = vec![UNTOUCHED; host.tokens * case.heads * case.head_size];
        Self {
            q: upload(gpu, &host.q, case.dtype),
            k,
            v,
            tables: gpu.upload(&host.tables).unwrap(),
            max_blocks: host.max_blocks,
            sinks: case.sinks().map(|sinks| gpu.upload(&sinks).unwrap()),
            rows: columns.map(|column| gpu.upload(&column).unwrap()),
            first: host.first,
            tiles: gpu.upload(tiles.as_flattened()).unwrap(),
            out: upload(gpu, &out, case.dtype),
        }
    }

    fn attention(&self, case: &Case<'_>) -> Attention<'_> {
        let Case { heads, kv_heads, head_size, block_size, window, softcap, .. } = *case;
        let (stride, max_blocks, sinks) = (case.stride(), self.max_blocks, self.sinks.as_ref());
        Attention {
            q: Queries { values: &self.q, stride, heads, head_size },
            cache: Cache {
                k: &self.k,
                v: &self.v,
                kv_heads,
                block_size,
                tables: &self.tables,
                max_blocks,
            },
            params: Params { scale: SCALE, window, softcap, sinks },
            out: &self.out,
        }
    }

    fn rows(&self) -> ChunkRows<'_> {
        let [slot, start, len, first] = &self.rows;
        ChunkRows { slot, start, len, first }
    }
}

/// The results of the rows of `case`; asserts that nothing else was written.
fn found(gpu: &Gpu, case: &Case<'_>) -> Vec<Vec<f32>> {
    let step = Step::new(gpu, case);
    prefill(gpu, &step.attention(case), &step.rows(), &step.tiles).unwrap();
    let (mut out, size) = (download(gpu, &step.out), case.heads * case.head_size);
    let row = |(&first, &(_, len)): (&usize, &(u32, u32))| {
        let row = &mut out[first * size..][..len as usize * size];
        let found = row.to_vec();
        row.fill(UNTOUCHED);
        found
    };
    let rows = step.first.iter().zip(case.rows).map(row).collect();
    assert!(out.iter().all(|&x| x == UNTOUCHED), "{case:?}: a token of nobody was written");
    rows
}

/// Weights and results are rounded, each by half a unit of their last place, and values are at
/// most 1.
#[track_caller]
fn check_case(gpu: &Gpu, case: &Case<'_>) {
    let unit = match case.dtype {
        DType::F16 => f16::EPSILON.to_f32(),
        _ => bf16::EPSILON.to_f32(),
    };
    for (i, (found, expected)) in found(gpu, case).iter().zip(case.expected()).enumerate() {
        assert_close(found, &expected, 0.8 * unit, &format!("row {i} of {case:?}"));
    }
}

#[test]
fn every_length_and_start_gives_what_the_formula_says() {
    let Some(gpu) = gpu() else { return };
    let lens = [1, 15, 16, 17, 63, 64, 65, 130];
    let rows: Vec<_> =
        [0, 1, 16, 30, 100].into_iter().flat_map(|s| lens.map(|len| (s, len))).collect();
    for dtype in HALVES {
        check_case(&gpu, &Case { rows: &rows, dtype, ..PLAIN });
    }
}

#[test]
fn every_head_size_and_group_gives_what_the_formula_says() {
    let Some(gpu) = gpu() else { return };
    for dtype in HALVES {
        for (head_size, heads, kv_heads) in
            [(64, 7, 1), (80, 2, 2), (96, 4, 2), (128, 4, 1), (128, 3, 3), (256, 2, 1)]
        {
            check_case(&gpu, &Case { dtype, head_size, heads, kv_heads, ..PLAIN });
        }
    }
}

#[test]
fn windows_caps_and_sinks_give_what_the_formula_says() {
    let Some(gpu) = gpu() else { return };
    let rows = &[(0, 65), (150, 130), (63, 2)];
    let windows = [1, 5, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1000, u32::MAX].map(Some);
    for (i, window) in [None].into_iter().chain(windows).enumerate() {
        let (softcap, with_sinks) = ([None, Some(1.5)][i / 2 % 2], i % 2 == 0);
        let head_size = [64, 80][i % 2];
        check_case(&gpu, &Case { rows, window, softcap, with_sinks, head_size, ..PLAIN });
    }
    for head_size in [128, 256] {
        let case = Case { rows, head_size, softcap: Some(2.0), with_sinks: true, ..PLAIN };
        check_case(&gpu, &case);
        check_case(&gpu, &Case { window: Some(40), dtype: DType::F16, ..case });
    }
}

#[test]
fn blocks_may_be_any_multiple_of_16() {
    let Some(gpu) = gpu() else { return };
    for block_size in [32, 48, 64, 112, 256] {
        check_case(&gpu, &Case { block_size, window: Some(90), ..PLAIN });
        check_case(&gpu, &Case { block_size, head_size: 96, ..PLAIN });
    }
}

#[test]
fn scores_that_rise_or_fall_by_far_give_what_the_formula_says() {
    let Some(gpu) = gpu() else { return };
    for dtype in HALVES {
        for growth in [0.3, 2.0, 4.0] {
            check_case(&gpu, &Case { rows: &[(250, 130)], dtype, growth, ..PLAIN });
        }
    }
}

#[test]
fn a_result_has_the_same_bits_however_its_row_is_cut() {
    let Some(gpu) = gpu() else { return };
    let bits = |rows: &[Vec<f32>]| rows.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    for (head_size, window) in [(64, None), (64, Some(70)), (128, None), (256, Some(40))] {
        let case = Case { head_size, window, growth: 1.5, ..PLAIN };
        let whole = bits(&found(&gpu, &Case { rows: &[(0, 300)], ..case }));
        for lens in [[100, 200, 0, 0], [1, 63, 64, 172], [33, 130, 7, 130], [299, 0, 0, 1]] {
            let (mut start, mut cut) = (0, Vec::new());
            for len in lens {
                // Beside another row, as the first one of a step.
                let rows: &[_] = &[(start, len), (3, 20)];
                cut.extend(found(&gpu, &Case { rows, ..case }).swap_remove(0));
                start += len;
            }
            assert!(bits(&[cut]) == whole, "{lens:?} of {case:?}");
        }
    }
}

#[test]
fn the_reciprocal_finds_the_block_of_every_tile() {
    for in_block in (1..40).chain([64, 100, 127, 128, 1024]) {
        let max_tiles = ((1_usize << 31) / in_block).min(300_000) as u32;
        let reciprocal = u64::from(reciprocal(in_block * TILE));
        for tile in 0..max_tiles {
            let block = ((2 * u64::from(tile) * reciprocal) >> 32) as u32;
            assert_eq!(block, tile / in_block as u32, "tile {tile}, {in_block} in a block");
        }
    }
}

#[test]
fn a_broken_rule_is_named() {
    let Some(gpu) = gpu() else { return };
    let step = Step::new(&gpu, &PLAIN);
    let (attention, rows, tiles) = (step.attention(&PLAIN), step.rows(), &step.tiles);
    let check = |attention: &Attention<'_>, rows: &ChunkRows<'_>, tiles: &Array, message: &str| {
        assert_error(prefill(&gpu, attention, rows, tiles), message);
    };
    let message = "start: expected shape [2], found [4]";
    let slot = step.rows[0].slice(0..2);
    check(&attention, &ChunkRows { slot: &slot, ..rows }, tiles, message);
    let message = "tiles: expected shape [1, 2], found [3]";
    check(&attention, &rows, &tiles.slice(0..3), message);
    let params = Params { scale: -1.0, ..attention.params };
    check(&Attention { params, ..attention }, &rows, tiles, "scale: expected above 0, found -1");
    let q = Queries { stride: attention.q.stride - 4, ..attention.q };
    let message = "q.stride: expected a multiple of 8, found 252";
    check(&Attention { q, ..attention }, &rows, tiles, message);
}
