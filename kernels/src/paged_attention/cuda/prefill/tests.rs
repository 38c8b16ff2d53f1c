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

/// A step on the device: tables in a random order, and NaN wherever nobody may look.
struct Step {
    q: Array,
    stride: usize,
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
        let Case { rows, dtype, heads, kv_heads, head_size, block_size, .. } = *case;
        let blocks_of = |row| case.context(row).div_ceil(block_size);
        let max_blocks = (0..rows.len()).map(blocks_of).max().unwrap();
        let num_blocks = (0..rows.len()).map(blocks_of).sum::<usize>() + 1;
        let keys = random(7, num_blocks);
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        free.sort_by(|&a, &b| keys[a as usize].total_cmp(&keys[b as usize]));

        // Rows come in the reverse order of slots and tokens; a token of nobody is before each.
        let mut tables = vec![0xdead_beef_u32; (rows.len() + 1) * max_blocks];
        let mut cache = [(); 2].map(|()| vec![f32::NAN; num_blocks * kv_heads * block_size * head_size]);
        let stride = (heads + 2 * kv_heads) * head_size;
        let tokens = rows.iter().map(|&(_, len)| len as usize + 1).sum();
        let mut q = vec![f32::NAN; tokens * stride];
        let (mut first, mut token) = (vec![0; rows.len()], 0);
        for row in (0..rows.len()).rev() {
            let (text, query) = (case.text(row), heads * head_size);
            token += 1;
            first[row] = token;
            for position in rows[row].0 as usize..case.context(row) {
                q[token * stride..][..query].copy_from_slice(&text.q[position * query..][..query]);
                token += 1;
            }
            let table = &mut tables[(rows.len() - row) * max_blocks..][..max_blocks];
            for position in case.first_seen(row)..case.context(row) {
                let block = &mut table[position / block_size];
                if *block == 0xdead_beef {
                    *block = free.pop().unwrap();
                }
                for head in 0..kv_heads {
                    let to = (*block as usize * kv_heads + head) * block_size + position % block_size;
                    for (to_all, from) in cache.iter_mut().zip([&text.k, &text.v]) {
                        let from = &from[(position * kv_heads + head) * head_size..][..head_size];
                        to_all[to * head_size..][..head_size].copy_from_slice(from);
                    }
                }
            }
        }
        let columns = [
            (0..rows.len()).map(|row| (rows.len() - row) as u32).chain([PAD]).collect::<Vec<_>>(),
            rows.iter().map(|&(start, _)| start).chain([0]).collect(),
            rows.iter().map(|&(_, len)| len).chain([0]).collect(),
            first.iter().map(|&first| first as u32).chain([PAD]).collect(),
        ];
        let mut tiles = query_tiles(rows, case.window);
        assert!(tiles.len() <= max_query_tiles(tokens, rows.len()), "a bound of the tiles");
        tiles.extend([[rows.len() as u32, 0], [PAD, 0], [PAD, PAD]]);
        let [k, v] = cache.map(|cache| upload(gpu, &cache, dtype));
        Self {
            q: upload(gpu, &q, dtype),
            stride,
            k,
            v,
            tables: gpu.upload(&tables).unwrap(),
            max_blocks,
            sinks: case.sinks().map(|sinks| gpu.upload(&sinks).unwrap()),
            rows: columns.map(|column| gpu.upload(&column).unwrap()),
            first,
            tiles: gpu.upload(tiles.as_flattened()).unwrap(),
            out: upload(gpu, &vec![UNTOUCHED; tokens * heads * head_size], dtype),
        }
    }

    fn attention(&self, case: &Case<'_>) -> Attention<'_> {
        let Case { heads, kv_heads, head_size, block_size, window, softcap, .. } = *case;
        let (stride, max_blocks, sinks) = (self.stride, self.max_blocks, self.sinks.as_ref());
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

    fn rows(&self) -> PrefillRows<'_> {
        let [slot, start, len, first] = &self.rows;
        PrefillRows { slot, start, len, first, tiles: &self.tiles }
    }
}

/// The results of the rows of `case`; asserts that nothing else was written.
fn found(gpu: &Gpu, case: &Case<'_>) -> Vec<Vec<f32>> {
    let step = Step::new(gpu, case);
    prefill(gpu, &step.attention(case), &step.rows()).unwrap();
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
    let unit = if case.dtype == DType::F16 { f16::EPSILON.to_f32() } else { bf16::EPSILON.to_f32() };
    for (i, (found, expected)) in found(gpu, case).iter().zip(case.expected()).enumerate() {
        assert_close(found, &expected, 0.8 * unit, &format!("row {i} of {case:?}"));
    }
}

#[test]
fn every_length_and_start_gives_what_the_formula_says() {
    let Some(gpu) = gpu() else { return };
    let lens = [1, 15, 16, 17, 63, 64, 65, 130];
    let rows: Vec<_> = [0, 1, 16, 100].into_iter().flat_map(|s| lens.map(|len| (s, len))).collect();
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
    let rows = &[(0, 33), (150, 130), (63, 2)];
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
fn query_tiles_that_see_most_come_first() {
    let rows = [(0, 300), (1000, 10), (5, 0), (0, 128)];
    let expected = [[1, 0], [0, 256], [0, 128], [0, 0], [3, 0]];
    assert_eq!(query_tiles(&rows, None), expected);
    let expected = [[0, 128], [0, 0], [3, 0], [0, 256], [1, 0]];
    assert_eq!(query_tiles(&rows, Some(64)), expected);
}

#[test]
fn the_reciprocal_finds_the_block_of_every_tile() {
    for in_block in (1..40).chain([64, 100, 127, 128, 1024]) {
        let max_tiles = ((1_usize << 31) / in_block).min(300_000) as u32;
        let reciprocal = u64::from(reciprocal(in_block * TILE));
        for tile in 0..max_tiles {
            let block = (2 * u64::from(tile) * reciprocal >> 32) as u32;
            assert_eq!(block, tile / in_block as u32, "tile {tile}, {in_block} in a block");
        }
    }
}

#[test]
fn a_broken_rule_is_named() {
    let Some(gpu) = gpu() else { return };
    let step = Step::new(&gpu, &PLAIN);
    let (attention, rows) = (step.attention(&PLAIN), step.rows());
    let check = |attention: &Attention<'_>, rows: &PrefillRows<'_>, message: &str| {
        assert_error(prefill(&gpu, attention, rows), message);
    };
    let slot = step.rows[0].slice(0..2);
    check(&attention, &PrefillRows { slot: &slot, ..rows }, "start: expected shape [2], found [4]");
    let tiles = step.tiles.slice(0..3);
    check(&attention, &PrefillRows { tiles: &tiles, ..rows }, "tiles: expected shape [1, 2], found [3]");
    let params = Params { scale: -1.0, ..attention.params };
    check(&Attention { params, ..attention }, &rows, "scale: expected above 0, found -1");
    let q = Queries { stride: attention.q.stride - 4, ..attention.q };
    check(&Attention { q, ..attention }, &rows, "q.stride: expected a multiple of 8, found 252");
}
