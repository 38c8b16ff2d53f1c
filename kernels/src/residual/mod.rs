//! Residual: what a half of a layer gave joins the stream, which is then normalised for the next
//! half, in one pass over each row:
//!
//! ```text
//! x   = x + scale * post(y)     post, if there is one, is the norm of what is given
//! out = pre(x)                  if it is asked for
//! ```
//!
//! x, y, out `[T, hidden]` f32, contiguous, each a tensor of its own; x and out are written. The
//! bits are those of the norms and of add, one after the other.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

use crate::Result;
use crate::norm::Norm;
use crate::view::{self, Locked};

/// What joins the stream.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// `[T, hidden]`.
    pub y: &'a Tensor,
    /// Its norm.
    pub post: Option<Norm<'a>>,
    /// The factor on it.
    pub scale: Option<f32>,
}

/// Adds `given` to the stream `x`, and writes its norm to the second of `normed`.
pub fn residual(
    x: &Tensor,
    given: Option<&Given<'_>>,
    normed: Option<(Norm<'_>, &Tensor)>,
) -> Result<()> {
    let [tokens, hidden] = view::dims(x, "x", ["T", "hidden"])?;
    let y = match given {
        Some(given) => {
            view::shape(given.y, "y", &[tokens, hidden])?;
            Some(Locked::new(given.y, "y")?)
        }
        None => None,
    };
    let post = given.and_then(|given| given.post).map(|post| post.lock(hidden)).transpose()?;
    let pre = normed.as_ref().map(|(pre, _)| pre.lock(hidden)).transpose()?;
    let work = cpu::Work {
        hidden,
        y: y.as_ref().map(Locked::f32s).transpose()?,
        post: post.as_ref().map(|post| post.get()).transpose()?,
        scale: given.and_then(|given| given.scale),
        pre: pre.as_ref().map(|pre| pre.get()).transpose()?,
    };
    let read = &[y.as_ref()];
    let Some((_, out)) = normed else {
        return view::write(x, "x", read, |x| cpu::residual(&work, x, None));
    };
    view::shape(out, "out", &[tokens, hidden])?;
    view::distinct((x, "x"), (out, "out"))?;
    let mut outcome = Ok(());
    view::write(out, "out", read, |out| {
        outcome = view::write(x, "x", read, |x| cpu::residual(&work, x, Some(out)));
    })?;
    outcome
}
