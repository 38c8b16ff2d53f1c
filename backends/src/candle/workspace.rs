//! The memory that activations live in, the same for every layer and every step.
//!
//! Each purpose has one buffer, as large as the largest step so far needed it. A step takes views of
//! them, by shape, and a view is kept for the next step of that shape: so a step that is like an
//! earlier one allocates nothing here.

use candle_core::Tensor;
use millstream_kernels::{Result, empty};

/// Views that a buffer keeps: shapes that steps of late had.
const MAX_VIEWS: usize = 32;

/// The activations of a step.
#[derive(Default)]
pub(crate) struct Workspace {
    /// `[T, hidden]`: the residual stream.
    pub(crate) stream: Buffer,
    /// `[T, hidden]`: the stream, normalised.
    pub(crate) normed: Buffer,
    /// `[T, (H + 2K) * D]`.
    pub(crate) qkv: Buffer,
    /// `[T, H, D]`: what attention gives.
    pub(crate) mixed: Buffer,
    /// `[T, hidden]`: what half a layer gives.
    pub(crate) given: Buffer,
    /// `[T, I]`.
    pub(crate) inner: Buffer,
    /// `[R, hidden]`: the rows that go through the head, normalised.
    pub(crate) last: Buffer,
    /// `[R, V]`.
    pub(crate) logits: Buffer,
}

/// Memory for one purpose, in f32.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Option<Tensor>,
    views: Vec<(Shape, Tensor)>,
}

/// What a view looks like.
#[derive(Clone, Copy, PartialEq)]
enum Shape {
    Matrix([usize; 2]),
    Heads([usize; 3]),
    /// The first of so many heads.
    FirstHeads([usize; 3], usize),
}

impl Buffer {
    /// `[rows, columns]`; it holds whatever the buffer held.
    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Result<Tensor> {
        self.view(Shape::Matrix([rows, columns]))
    }

    /// `[tokens, heads, head_size]`.
    pub(crate) fn heads(&mut self, shape: [usize; 3]) -> Result<Tensor> {
        self.view(Shape::Heads(shape))
    }

    /// `[tokens, count, head_size]`: the first heads of all that there are in a view of `shape`.
    pub(crate) fn first_heads(&mut self, shape: [usize; 3], count: usize) -> Result<Tensor> {
        self.view(Shape::FirstHeads(shape, count))
    }

    fn view(&mut self, shape: Shape) -> Result<Tensor> {
        if let Some((_, view)) = self.views.iter().find(|(known, _)| *known == shape) {
            return Ok(view.clone());
        }
        let dims: &[usize] = match &shape {
            Shape::Matrix(dims) => dims,
            Shape::Heads(dims) | Shape::FirstHeads(dims, _) => dims,
        };
        let len: usize = dims.iter().product();
        let whole = self.memory(len)?.narrow(0, 0, len)?.reshape(dims)?;
        let view = match shape {
            Shape::FirstHeads(_, count) => whole.narrow(1, 0, count)?,
            _ => whole,
        };
        if self.views.len() == MAX_VIEWS {
            self.views.remove(0);
        }
        self.views.push((shape, view.clone()));
        Ok(view)
    }

    /// At least `len` elements.
    fn memory(&mut self, len: usize) -> Result<&Tensor> {
        let capacity = self.memory.as_ref().map_or(0, Tensor::elem_count);
        if self.memory.is_none() || capacity < len {
            self.views.clear();
            // The old memory goes before the new is there.
            self.memory = None;
            let capacity = len.max(capacity + capacity / 2);
            self.memory = Some(empty(&[capacity])?);
        }
        Ok(self.memory.as_ref().unwrap_or_else(|| unreachable!("it was just made")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_a_buffer_share_its_memory_until_it_grows() {
        let mut buffer = Buffer::default();
        let first = buffer.matrix(2, 6).unwrap();
        first.const_set(candle_core::scalar::Scalar::F32(3.0)).unwrap();
        let heads = buffer.first_heads([1, 4, 3], 2).unwrap();
        assert_eq!(heads.to_vec3::<f32>().unwrap(), [[[3.0; 3]; 2]]);
        assert!(buffer.matrix(3, 6).unwrap().to_vec2::<f32>().unwrap()[0] == [0.0; 6]);
        for rows in 0..2 * MAX_VIEWS {
            assert_eq!(buffer.matrix(rows, 5).unwrap().dims(), [rows, 5]);
        }
    }
}
