//! Grouping on the GPU: the rows of [`crate::moe::Grouping`], and the tiles that products work
//! through.

use candle_core::DType;

use crate::cuda::{Array, Gpu, Launch, Module, check, module};
use crate::{KernelError, Result};

static MODULE: Module = module!("moe_group");

/// Choices of a block, and its threads.
const CHOICES: u32 = 1024;
/// A thread of a block has one expert.
const MAX_EXPERTS: usize = 1024;
/// Numbers of a tile: its expert, its first row, its rows.
const TILE_WORDS: usize = 3;
/// Rows that tiles may have, as there are kernels for.
const TILE_ROWS: [usize; 3] = [16, 64, 128];

/// How many tokens go to how many experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `T`.
    pub tokens: usize,
    /// `top_k`: experts of a token.
    pub top_k: usize,
    /// `E`.
    pub num_experts: usize,
}

impl Shape {
    /// `T * top_k`.
    pub fn choices(self) -> usize {
        self.tokens * self.top_k
    }

    /// The most rows of a tile. Where an expert has few rows, reading its weights is what takes
    /// time, and an expert in two tiles is read twice, from the cache the second time. Where it has
    /// many, a large tile reads them less often.
    pub fn tile_rows(self) -> usize {
        let average = self.choices() / self.num_experts.max(1);
        match average {
            0..=8 => TILE_ROWS[0],
            9..=64 => TILE_ROWS[1],
            _ => TILE_ROWS[2],
        }
    }

    /// The most tiles that there can be: each expert that is chosen has one, and one more for each
    /// `tile_rows` rows beyond its first.
    pub fn max_tiles(self) -> usize {
        self.tiles_of(self.tile_rows())
    }

    fn tiles_of(self, rows: usize) -> usize {
        let chosen = self.choices().min(self.num_experts);
        chosen + (self.choices() - chosen) / rows
    }

    /// How many u32 a [`Grouping`] takes; no fewer than one of fewer tokens.
    pub fn words(self) -> usize {
        3 * self.choices() + self.num_experts + 1 + TILE_WORDS * self.tiles_of(TILE_ROWS[0])
    }
}

/// Which rows go to which expert. All of it is u32, on the device.
#[derive(Clone, Debug)]
pub struct Grouping {
    pub(super) shape: Shape,
    /// `[T * top_k]`: the token of each row; `u32::MAX` where there is no such row, because tokens
    /// are padding.
    pub token_of_row: Array,
    /// `[T * top_k]`: the expert of each row; `u32::MAX` as above.
    pub expert_of_row: Array,
    /// `[T, top_k]`: the row of each choice; `u32::MAX` for those of padding.
    pub row_of_choice: Array,
    /// `[E]`: the rows of expert e end before `ends[e]`, and begin where those of e-1 end.
    pub ends: Array,
    /// `[max_tiles, 3]`: expert, first row and number of rows.
    pub tiles: Array,
    /// `[1]`: how many tiles there are.
    pub num_tiles: Array,
}

impl Grouping {
    /// The grouping of `shape` in `memory`, u32, at least [`Shape::words`] of them. It holds
    /// nothing before it is filled.
    pub fn new(memory: &Array, shape: Shape) -> Result<Self> {
        let wrong = |argument, rule: String, found: usize| {
            Err(KernelError::Value { argument, rule, found: found.to_string() })
        };
        check::shape(memory, "memory", DType::U32, &[memory.len()])?;
        if memory.len() < shape.words() {
            return wrong("memory", format!("at least {} words", shape.words()), memory.len());
        }
        if shape.num_experts == 0 || shape.num_experts > MAX_EXPERTS {
            let rule = format!("1 to {MAX_EXPERTS}");
            return wrong("num_experts", rule, shape.num_experts);
        }
        if shape.top_k == 0 {
            return wrong("top_k", "above 0".to_owned(), 0);
        }
        check::count("tokens", shape.choices())?;
        let mut start = 0;
        let mut take = |len| {
            start += len;
            memory.slice(start - len..start)
        };
        Ok(Self {
            shape,
            token_of_row: take(shape.choices()),
            expert_of_row: take(shape.choices()),
            row_of_choice: take(shape.choices()),
            ends: take(shape.num_experts),
            tiles: take(TILE_WORDS * shape.max_tiles()),
            num_tiles: take(1),
        })
    }

    /// Groups the choices `experts` `[T, top_k]` u32. A token whose `padding` `[T]` u32 is
    /// `u32::MAX` takes no part (the places in the cache of the tokens' keys are such numbers), nor
    /// does a choice that is not below E.
    #[allow(unsafe_code)]
    pub fn fill(&self, gpu: &Gpu, experts: &Array, padding: Option<&Array>) -> Result<()> {
        let Shape { tokens, top_k, num_experts } = self.shape;
        check::shape(experts, "experts", DType::U32, &[tokens, top_k])?;
        padding.map_or(Ok(()), |p| check::shape(p, "padding", DType::U32, &[tokens]))?;
        let choices = self.shape.choices();
        // One block at least: that there are no tiles has to be written as well.
        let blocks = (choices as u32).div_ceil(CHOICES).max(1);
        let launch = Launch { grid: [blocks, 1, 1], block: CHOICES, shared: 0 };
        let args = [
            experts.into(),
            padding.into(),
            (&self.token_of_row).into(),
            (&self.expert_of_row).into(),
            (&self.row_of_choice).into(),
            (&self.ends).into(),
            (&self.tiles).into(),
            (&self.num_tiles).into(),
            (choices as i32).into(),
            (top_k as i32).into(),
            (num_experts as i32).into(),
            (self.shape.tile_rows() as i32).into(),
        ];
        // SAFETY: the arguments are the kernel's, `new` has cut the arrays, and there are at most
        // `max_tiles` tiles of any choices.
        unsafe { gpu.launch(&MODULE, "moe_group", launch, &args)? };
        Ok(())
    }
}
