//! Route on the GPU: the rules of [`crate::moe::route()`], and a bias of the router's own.

use candle_core::DType;

use super::Shape;
use crate::cuda::{Array, Gpu, Launch, Module, check, module};
use crate::moe::route::check_routing;
use crate::moe::{Groups, Order, Routing, Score};
use crate::{KernelError, Result};

static MODULE: Module = module!("moe_route");

/// Tokens of a block, one for each warp.
const WARPS: usize = 4;
/// A lane of a warp has one choice.
const MAX_TOP_K: usize = 32;
/// What all tokens of a block choose from fits in shared memory that need not be asked for.
const MAX_EXPERTS: usize = 1024;

/// How a layer sends tokens to experts.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// The rules.
    pub routing: &'a Routing,
    /// `[E]` f32, added to the logits first.
    pub logits_bias: Option<&'a Array>,
    /// `[E]` f32, takes part in the choice alone.
    pub select_bias: Option<&'a Array>,
}

/// Writes the experts of each token to `experts` `[T, top_k]` u32, below E, and their weights to
/// `weights` `[T, top_k]` f32, of `logits` `[T, E]` f32.
#[allow(unsafe_code)]
pub fn route(
    gpu: &Gpu,
    shape: Shape,
    logits: &Array,
    router: &Router<'_>,
    [experts, weights]: [&Array; 2],
) -> Result<()> {
    let Shape { tokens, top_k, num_experts } = shape;
    check_rules(shape, router.routing)?;
    check::shape(logits, "logits", DType::F32, &[tokens, num_experts])?;
    check::shape(experts, "experts", DType::U32, &[tokens, top_k])?;
    check::shape(weights, "weights", DType::F32, &[tokens, top_k])?;
    let biases = [("logits_bias", router.logits_bias), ("select_bias", router.select_bias)];
    for (argument, bias) in biases {
        bias.map_or(Ok(()), |bias| check::shape(bias, argument, DType::F32, &[num_experts]))?;
    }
    let Routing { score, order, renormalize, scale, groups, .. } = *router.routing;
    // Of no groups, all are kept.
    let Groups { num, keep } = groups.unwrap_or(Groups { num: 0, keep: 0 });
    let launch = Launch {
        grid: [check::count("logits", tokens)?.cast_unsigned().div_ceil(WARPS as u32), 1, 1],
        block: WARPS as u32 * 32,
        shared: (WARPS * (2 * num_experts + num) * size_of::<f32>()) as u32,
    };
    let args = [
        logits.into(),
        router.logits_bias.into(),
        router.select_bias.into(),
        experts.into(),
        weights.into(),
        (tokens as i32).into(),
        (num_experts as i32).into(),
        (top_k as i32).into(),
        (score_number(score)).into(),
        (order_number(order)).into(),
        i32::from(renormalize).into(),
        scale.into(),
        (num as i32).into(),
        (keep as i32).into(),
    ];
    // SAFETY: the arguments are the kernel's, and lengths and rules were checked.
    unsafe { gpu.launch(&MODULE, "moe_route", launch, &args)? };
    Ok(())
}

/// As the kernel takes it.
fn score_number(score: Score) -> i32 {
    match score {
        Score::Softmax => 0,
        Score::Sigmoid => 1,
    }
}

/// As the kernel takes it.
fn order_number(order: Order) -> i32 {
    match order {
        Order::ScoreThenTopK => 0,
        Order::TopKThenScore => 1,
    }
}

fn check_rules(shape: Shape, routing: &Routing) -> Result<()> {
    check_routing(routing, shape.num_experts)?;
    let wrong = |argument, rule, found: usize| {
        Err(KernelError::Value { argument, rule, found: found.to_string() })
    };
    if routing.top_k != shape.top_k {
        return wrong("top_k", format!("that of the routing, {}", routing.top_k), shape.top_k);
    }
    if routing.top_k > MAX_TOP_K {
        return wrong("top_k", format!("at most {MAX_TOP_K}"), routing.top_k);
    }
    if shape.num_experts > MAX_EXPERTS {
        return wrong("num_experts", format!("at most {MAX_EXPERTS}"), shape.num_experts);
    }
    Ok(())
}
