//! From logits to tokens, with the vocabulary of Qwen3.

use candle_core::DType;
use millstream_kernels::sampling::{Draw, FINDINGS_LEN, OUTCOME_WORDS, Row, draw};

use crate::measure::{Bench, Result, bytes};

pub(crate) fn run(bench: &Bench) -> Result {
    let vocab = bench.size(151_936, 1000);
    for &rows in bench.sizes(&[1, 32, 256]) {
        let temperature = 0.8;
        let kinds = [
            ("sampling, greedy", Row::PADDING),
            ("sampling, top-p", Row { temperature, top_p: 0.9, ..Row::PADDING }),
            ("sampling, top-k", Row { temperature, top_k: 50, ..Row::PADDING }),
        ];
        for (name, kind) in kinds {
            sample(bench, name, (rows, vocab), kind)?;
        }
    }
    Ok(())
}

fn sample(bench: &Bench, name: &str, (rows, vocab): (usize, usize), kind: Row) -> Result {
    let gpu = &bench.gpu;
    let copies = bench.copies(4 * rows * vocab);
    // As spread as those of a model: the sum of a dozen uniform numbers is nearly normal.
    let mut state = 3_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    let row: Vec<f32> =
        (0..vocab).map(|_| 3.0 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect();
    let row = gpu.upload(&row)?;
    let logits = gpu.uninitialized(DType::F32, copies * rows * vocab)?;
    for at in 0..copies * rows {
        gpu.copy(&row, &logits.slice(at * vocab..(at + 1) * vocab))?;
    }
    let logits: Vec<_> = (0..copies)
        .map(|copy| logits.slice(copy * rows * vocab..(copy + 1) * rows * vocab))
        .collect();
    let words = |slot: u32| Row { slot, position: 100, seed: u64::from(slot), ..kind }.words();
    let row_words = gpu.upload(&(0..rows as u32).flat_map(words).collect::<Vec<_>>())?;
    let none = gpu.zeros(DType::U32, 0)?;
    let counts = gpu.zeros(DType::U32, rows * vocab)?;
    let last_token = gpu.zeros(DType::U32, rows)?;
    let findings = gpu.zeros(DType::I64, rows * FINDINGS_LEN)?;
    let outcomes = gpu.zeros(DType::U32, rows * OUTCOME_WORDS)?;
    let shape = format!("R={rows} V={vocab}");
    // What must be read once; further passes are over what is still in a cache.
    bench.kernel((name, &shape), bytes(4 * rows * vocab), copies, |call| {
        let call = Draw {
            vocab_size: vocab,
            logits: &logits[call % copies],
            rows: &row_words,
            lists: &none,
            masks: &none,
            counts: &counts,
            findings: &findings,
            last_token: &last_token,
            outcomes: &outcomes,
        };
        draw(gpu, &call)
    })
}
