//! Rows are those of the CPU, for the tokens that are no padding.

use super::*;

#[test]
fn rows_are_those_of_the_cpu_without_padding() {
    let Some(gpu) = gpu() else { return };
    for (tokens, top_k, num_experts) in
        [(0, 2, 3), (1, 1, 1), (1, 8, 128), (7, 3, 5), (33, 2, 11), (300, 5, 7), (400, 8, 1024)]
    {
        let shape = Shape { tokens, top_k, num_experts };
        let experts = choices(shape);
        let sometimes: Vec<u32> =
            (0..tokens as u32).map(|t| if t % 3 == 1 { PAD } else { 5 * t }).collect();
        for padding in [None, Some(vec![PAD; tokens]), Some(sometimes)] {
            let found = grouping(&gpu, shape, &experts, padding.as_deref());
            let is_real = |t: usize| padding.as_ref().is_none_or(|padding| padding[t] != PAD);
            check_grouping(&gpu, &found, &experts, &is_real);
        }
    }
}

/// Compares a grouping with that of the tokens which are no padding, on the CPU.
fn check_grouping(gpu: &Gpu, found: &Grouping, experts: &[u32], is_real: &dyn Fn(usize) -> bool) {
    let Shape { tokens, top_k, num_experts } = found.shape;
    let real: Vec<usize> = (0..tokens).filter(|&t| is_real(t)).collect();
    let real_experts: Vec<u32> =
        real.iter().flat_map(|&t| &experts[t * top_k..][..top_k]).copied().collect();
    let routes =
        moe::Routes { weights: vec![0.0; real_experts.len()], experts: real_experts, top_k };
    let expected = moe::Grouping::new(&routes, num_experts).unwrap();
    let case = format!("{:?}, {} real", found.shape, real.len());
    let read = |array: &Array| gpu.download::<u32>(array).unwrap();
    assert_eq!(read(&found.ends), expected.ends(), "{case}");

    let missing = vec![PAD; experts.len() - expected.tokens.len()];
    let mut tokens: Vec<u32> = expected.tokens.iter().map(|&i| real[i as usize] as u32).collect();
    tokens.extend(&missing);
    assert_eq!(read(&found.token_of_row), tokens, "{case}");
    let mut rows = vec![PAD; experts.len()];
    let mut expert_of_row = vec![PAD; experts.len()];
    for (i, &row) in expected.rows.iter().enumerate() {
        rows[real[i / top_k] * top_k + i % top_k] = row;
        expert_of_row[row as usize] = routes.experts[i];
    }
    assert_eq!(read(&found.row_of_choice), rows, "{case}");
    assert_eq!(read(&found.expert_of_row), expert_of_row, "{case}");

    let (mut tiles, mut start) = (Vec::new(), 0);
    for (expert, &end) in expected.ends().iter().enumerate() {
        while start < end {
            let rows = (end - start).min(found.shape.tile_rows() as u32);
            tiles.push([expert as u32, start, rows]);
            start += rows;
        }
    }
    assert_eq!(read(&found.num_tiles), [tiles.len() as u32], "{case}");
    assert!(tiles.len() <= found.shape.max_tiles(), "{case}");
    assert_eq!(read(&found.tiles)[..3 * tiles.len()], *tiles.as_flattened(), "{case}");
}

#[test]
fn a_choice_of_no_expert_has_no_row() {
    let Some(gpu) = gpu() else { return };
    let shape = Shape { tokens: 2, top_k: 2, num_experts: 3 };
    let found = grouping(&gpu, shape, &[3, 1, PAD, 0], None);
    let read = |array: &Array| gpu.download::<u32>(array).unwrap();
    assert_eq!(read(&found.row_of_choice), [PAD, 1, PAD, 0]);
    assert_eq!(read(&found.token_of_row), [1, 0, PAD, PAD]);
}
