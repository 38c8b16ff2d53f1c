//! Step: what the host sends for a step, put where the other kernels look for it.
//!
//! A token that an earlier step samples is not known to the host when the next step is sent. It
//! stands there as its slot ([`from_slot`]), and [`resolve`] puts the token in its place on the
//! device. Block tables stay on the device from step to step, and [`scatter`] changes them where
//! they have grown.

use candle_core::DType;

use crate::Result;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};

static MODULE: Module = module!("step");

const THREADS: u32 = 256;

/// `FROM_SLOT` of the kernel's file.
const FROM_SLOT: u32 = 1 << 31;

/// In place of a token's id: the token that was sampled last for `slot`, which is below 2^31.
pub fn from_slot(slot: u32) -> u32 {
    FROM_SLOT | slot
}

/// Puts the token of `last_token` `[S]` u32 in the place of every slot in `ids` `[T]` u32.
#[allow(unsafe_code)]
pub fn resolve(gpu: &Gpu, ids: &Array, last_token: &Array) -> Result<()> {
    check::shape(ids, "ids", DType::U32, &[ids.len()])?;
    check::shape(last_token, "last_token", DType::U32, &[last_token.len()])?;
    let tokens = check::count("ids", ids.len())?;
    let slots = check::count("last_token", last_token.len())? as u32;
    let args = [ids.into(), last_token.into(), slots.into(), tokens.into()];
    // SAFETY: the arguments are the kernel's, and it reads no slot that there is not.
    unsafe { gpu.launch(&MODULE, "step_resolve", one_each(tokens), &args)? };
    Ok(())
}

/// Writes `updates` `[n, 2]` u32, each a place and a number, to `table` u32; no place comes twice.
#[allow(unsafe_code)]
pub fn scatter(gpu: &Gpu, table: &Array, updates: &Array) -> Result<()> {
    check::shape(table, "table", DType::U32, &[table.len()])?;
    check::shape(updates, "updates", DType::U32, &[updates.len() / 2, 2])?;
    check::aligned(updates, "updates")?;
    let count = check::count("updates", updates.len() / 2)?;
    let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
    let args = [table.into(), len.into(), updates.into(), count.into()];
    // SAFETY: the arguments are the kernel's, and it writes no place that there is not.
    unsafe { gpu.launch(&MODULE, "step_scatter", one_each(count), &args)? };
    Ok(())
}

/// A thread for each of so many entries.
fn one_each(count: i32) -> Launch {
    Launch { grid: [(count as u32).div_ceil(THREADS), 1, 1], block: THREADS, shared: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::gpu;

    #[test]
    fn tokens_that_the_host_does_not_know_are_those_of_their_slots() {
        let Some(gpu) = gpu() else { return };
        for tokens in [1, 7, 256, 257] {
            let ids: Vec<u32> =
                (0..tokens).map(|t| if t % 3 == 0 { from_slot(t % 5) } else { t }).collect();
            let (ids, last) =
                (gpu.upload(&ids).unwrap(), gpu.upload(&[10_u32, 11, 12, 13]).unwrap());
            resolve(&gpu, &ids, &last).unwrap();
            let expected = (0..tokens).map(|t| match (t % 3, t % 5) {
                (0, 4) => FROM_SLOT - 1,
                (0, slot) => 10 + slot,
                _ => t,
            });
            assert_eq!(gpu.download::<u32>(&ids).unwrap(), expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_table_changes_where_it_is_told_and_nowhere_else() {
        let Some(gpu) = gpu() else { return };
        let table = gpu.upload(&[1_u32; 600]).unwrap();
        let updates: Vec<u32> = (0..300).flat_map(|i| [2 * i + 1, i]).chain([600, 9]).collect();
        scatter(&gpu, &table, &gpu.upload(&updates).unwrap()).unwrap();
        let expected: Vec<u32> = (0..600).map(|i| if i % 2 == 1 { i / 2 } else { 1 }).collect();
        assert_eq!(gpu.download::<u32>(&table).unwrap(), expected);
        scatter(&gpu, &table, &gpu.upload::<u32>(&[]).unwrap()).unwrap();
    }
}
