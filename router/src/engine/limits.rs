//! What the worker and the configuration allow, together.
//!
//! This module knows the numbers of a worker. It does not know sequences or steps.

use millstream_proto::WorkerInfo;

use super::core::EngineConfig;

/// What the worker and the configuration allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Positions that one step computes at most.
    pub max_batch_tokens: u32,
    /// Of these, positions of prompts and of what is computed anew: everything but the next token of
    /// a sequence that decodes.
    pub max_prefill_tokens: u32,
    /// Sequences that run at once.
    pub max_slots: u32,
    /// Tokens per KV block, in every cache group.
    pub block_size: u32,
    /// The cache groups of the worker, in its order.
    pub groups: Vec<GroupLimits>,
    /// Longest sequence, prompt and output together.
    pub max_model_len: u32,
    /// Whether sequences share the blocks of equal prefixes.
    pub prefix_caching: bool,
}

/// One cache group of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Its KV blocks.
    pub num_blocks: u32,
    /// Positions that a token sees, its own included; `None` for all.
    pub window: Option<u32>,
}

impl GroupLimits {
    /// Blocks with which one sequence of `max_len` tokens always advances.
    ///
    /// With a window, a step reads `window - 1` positions before its first one and writes at least
    /// one. These `window` positions touch at most `ceil((window - 1) / B) + 1` blocks; one more
    /// lets a decode go on while the step before it is in flight.
    fn least_blocks(&self, block_size: u32, max_len: u32) -> u32 {
        let all = max_len.div_ceil(block_size);
        self.window.map_or(all, |window| all.min((window - 1).div_ceil(block_size) + 2))
    }
}

/// What this worker can run under this configuration, or why this router cannot use it.
pub(super) fn limits(config: &EngineConfig, info: &WorkerInfo) -> Result<Limits, String> {
    if info.world > 1 {
        return Err(format!("it is one of {} shards, this router runs exactly 1", info.world));
    }
    if info.cache_groups.is_empty() {
        return Err("it has no cache groups, at least 1 is needed".to_owned());
    }
    let groups: Vec<GroupLimits> = info
        .cache_groups
        .iter()
        .map(|group| GroupLimits {
            num_blocks: group.num_blocks,
            window: (group.window > 0).then_some(group.window),
        })
        .collect();
    // One sequence alone must always fit: where a group keeps all of it, its blocks are the limit.
    let full = groups.iter().filter(|group| group.window.is_none());
    let room = full.map(|group| group.num_blocks.saturating_mul(info.block_size)).min();
    let wanted = config.max_prefill_tokens.unwrap_or(info.timed_prefill_tokens);
    let limits = Limits {
        max_batch_tokens: info.max_batch_tokens,
        max_prefill_tokens: wanted.max(1).min(info.max_batch_tokens),
        max_slots: info.max_slots.min(config.max_batch_size),
        block_size: info.block_size,
        max_model_len: info.max_model_len.min(room.unwrap_or(u32::MAX)),
        prefix_caching: config.prefix_caching && !info.has_unblocked_state,
        groups,
    };
    let fewest = limits.groups.iter().map(|group| group.num_blocks).min();
    let numbers = [
        ("max_batch_tokens", limits.max_batch_tokens),
        ("max_slots", limits.max_slots),
        ("block_size", limits.block_size),
        ("num_blocks", fewest.unwrap_or(0)),
        ("max_model_len", limits.max_model_len),
    ];
    if let Some((name, _)) = numbers.iter().find(|(_, number)| *number == 0) {
        return Err(format!("its {name} is 0"));
    }
    for (index, group) in limits.groups.iter().enumerate() {
        let needed = group.least_blocks(limits.block_size, limits.max_model_len);
        if group.num_blocks < needed {
            let (found, window) = (group.num_blocks, group.window.unwrap_or(0));
            return Err(format!(
                "its cache group {index} (window {window}) has {found} blocks, one sequence needs \
                 {needed}"
            ));
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millstream_proto::CacheGroup;

    use super::*;

    fn config() -> EngineConfig {
        EngineConfig {
            max_prefill_tokens: None,
            max_batch_size: 8,
            prefix_caching: true,
            resume_timeout: Duration::ZERO,
            step_timeout: Duration::ZERO,
        }
    }

    fn group(num_blocks: u32, window: u32) -> CacheGroup {
        CacheGroup { num_blocks, window, ..Default::default() }
    }

    fn info() -> WorkerInfo {
        WorkerInfo {
            max_model_len: 100,
            block_size: 4,
            max_slots: 16,
            max_batch_tokens: 64,
            timed_prefill_tokens: 32,
            cache_groups: vec![group(50, 0)],
            world: 1,
            ..Default::default()
        }
    }

    fn with_groups(cache_groups: Vec<CacheGroup>) -> WorkerInfo {
        WorkerInfo { cache_groups, ..info() }
    }

    #[test]
    fn limits_are_the_smaller_of_worker_and_configuration() {
        let limits_of = |config: EngineConfig, info: WorkerInfo| limits(&config, &info).unwrap();
        let usual = limits_of(config(), info());
        assert_eq!(
            (usual.max_batch_tokens, usual.max_prefill_tokens, usual.max_slots),
            (64, 32, 8)
        );
        assert!(usual.prefix_caching && usual.max_model_len == 100);
        let wide = EngineConfig { max_prefill_tokens: Some(1000), ..config() };
        assert_eq!(limits_of(wide, info()).max_prefill_tokens, 64);
        let long = limits_of(config(), WorkerInfo { max_model_len: 1000, ..info() });
        assert_eq!(long.max_model_len, 200, "one sequence must fit the blocks");
        let stateful = WorkerInfo { has_unblocked_state: true, ..info() };
        assert!(!limits_of(config(), stateful).prefix_caching);
    }

    #[test]
    fn only_groups_without_a_window_bound_the_length() {
        // A window of 9 needs the 2 blocks before a position, its own, and one in flight.
        let info = with_groups(vec![group(20, 0), group(4, 9), group(30, 0)]);
        let limits_of = |info: WorkerInfo| limits(&config(), &info).unwrap();
        let mixed = limits_of(info);
        assert_eq!((mixed.max_model_len, mixed.groups.len()), (80, 3));
        assert_eq!(mixed.groups[1], GroupLimits { num_blocks: 4, window: Some(9) });
        assert_eq!(limits_of(with_groups(vec![group(4, 9)])).max_model_len, 100);
        // A window that is never full needs no more than the longest sequence.
        assert_eq!(limits_of(with_groups(vec![group(25, 1000)])).max_model_len, 100);
    }

    #[test]
    fn a_worker_that_cannot_be_used_is_refused_in_words() {
        let cases = [
            (with_groups(vec![]), "it has no cache groups"),
            (with_groups(vec![group(50, 0), group(3, 9)]), "group 1 (window 9) has 3 blocks"),
            (with_groups(vec![group(3, 9)]), "one sequence needs 4"),
            (with_groups(vec![group(24, 1000)]), "one sequence needs 25"),
            (with_groups(vec![group(50, 0), group(0, 9)]), "num_blocks is 0"),
            (WorkerInfo { world: 2, ..info() }, "one of 2 shards"),
            (WorkerInfo { block_size: 0, ..info() }, "block_size is 0"),
            (WorkerInfo { max_batch_tokens: 0, ..info() }, "max_batch_tokens is 0"),
        ];
        for (info, rule) in cases {
            let reason = limits(&config(), &info).unwrap_err();
            assert!(reason.contains(rule), "{reason}");
        }
    }
}
