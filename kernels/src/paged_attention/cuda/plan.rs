//! Which parts of which contexts are read by [`super::decode()`]: decided on the device, once for a
//! step and a window, for all layers that have that window.

use candle_core::DType;

use super::{value, window};
use crate::Result;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};

static MODULE: Module = module!("paged_attention_plan");

/// Positions of a split (`SPLIT` of `paged_attention_split.cuh`).
#[cfg(test)]
pub(super) const SPLIT: usize = 256;

/// u32s of an item (`Item` there).
const ITEM: usize = 8;

/// The rows of a step that have one query each.
#[derive(Clone, Copy, Debug)]
pub struct DecodeRows<'a> {
    /// `[R]` u32: whose blocks.
    pub slot: &'a Array,
    /// `[R]` u32: how many positions, the query's own counted in; 0 is padding.
    pub context_len: &'a Array,
    /// `[R]` u32: which token of the step is the query.
    pub token: &'a Array,
}

/// The list of the splits of a step's rows, in memory that the caller gives.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) rows: usize,
    pub(super) max_items: usize,
    pub(super) window: Option<u32>,
    /// `[1]` u32.
    pub(super) num_items: Array,
    /// `[max_items, 8]` u32.
    pub(super) items: Array,
    /// `[R + 1]` u32: where the partial sums of a row begin.
    pub(super) row_partials: Array,
    /// `[R]` u32: the first item of a row.
    pub(super) first_item: Array,
}

impl Plan {
    /// How many items a step of `rows` rows usually has room for: enough to keep a device busy.
    ///
    /// A step whose rows have more splits of 256 positions gets longer ones, so that a row's sums
    /// are in another order than they are alone. With an item for each 256 positions that a row
    /// may have, and one more for each row, they never are.
    pub fn max_items(rows: usize) -> usize {
        4096 + rows
    }

    /// How many u32s a plan of that many rows and items takes.
    pub fn len(rows: usize, max_items: usize) -> usize {
        // The number of items has the first 16 bytes, so that items are aligned.
        4 + max_items * ITEM + (rows + 1) + rows
    }

    /// A plan in `memory`, `[`[`Plan::len`]`]` u32, for `rows` rows of a step and layers with
    /// `window`; it says nothing until it is made.
    pub fn new(memory: &Array, rows: usize, max_items: usize, window: Option<u32>) -> Result<Self> {
        check::shape(memory, "plan", DType::U32, &[Self::len(rows, max_items)])?;
        check::aligned(memory, "plan")?;
        if max_items < rows {
            return Err(value("max_items", &format!("at least {rows} rows"), max_items));
        }
        if window == Some(0) {
            return Err(value("window", "at least 1", 0));
        }
        let (items, partials) = (4 + max_items * ITEM, rows + 1);
        Ok(Self {
            rows,
            max_items,
            window,
            num_items: memory.slice(0..1),
            items: memory.slice(4..items),
            row_partials: memory.slice(items..items + partials),
            first_item: memory.slice(items + partials..items + partials + rows),
        })
    }

    /// Lists the splits of `rows`, of which there are as many as the plan was made for.
    #[allow(unsafe_code)]
    pub fn make(&self, gpu: &Gpu, rows: &DecodeRows<'_>) -> Result<()> {
        check::shape(rows.slot, "slot", DType::U32, &[self.rows])?;
        check::shape(rows.context_len, "context_len", DType::U32, &[self.rows])?;
        check::shape(rows.token, "token", DType::U32, &[self.rows])?;
        let args = [
            rows.slot.into(),
            rows.context_len.into(),
            rows.token.into(),
            check::count("rows", self.rows)?.into(),
            window(self.window).into(),
            check::count("max_items", self.max_items)?.into(),
            (&self.num_items).into(),
            (&self.items).into(),
            (&self.row_partials).into(),
            (&self.first_item).into(),
        ];
        let launch = Launch { grid: [1, 1, 1], block: 1024, shared: 0 };
        // SAFETY: the arguments are the kernel's, and the arrays were checked. It writes at most
        // max_items items: it makes splits longer until there are no more.
        unsafe { gpu.launch(&MODULE, "paged_attention_plan", launch, &args)? };
        Ok(())
    }
}
