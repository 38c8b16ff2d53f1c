//! Add: `out = x + y`, element by element: the residual.
//!
//! x, y of one shape, f32, strided in their first dimension or not; out of that shape, contiguous.

mod cpu;
#[cfg(test)]
mod reference;

use candle_core::{Device, Tensor};

use crate::view::{self, Locked};
use crate::{KernelError, Result};

/// `x + y`, both f32 and of one shape; gives that shape.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    view::shape(y, "y", x.dims())?;
    match x.device() {
        Device::Cpu => {
            let shape = x.dims();
            let (x, y) = (Locked::new(x, "x")?, Locked::new(y, "y")?);
            view::tensor(cpu::add(x.rows()?, y.rows()?), shape)
        }
        device => Err(KernelError::device("x", device)),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::testing::{assert_error, random_tensor, strided, values};

    #[test]
    fn add_gives_the_sums_of_any_shape() {
        for shape in [&[1][..], &[257], &[7, 33], &[33, 3, 7], &[700, 257], &[0, 5]] {
            let (x, y) = (random_tensor(1, shape, DType::F32), random_tensor(2, shape, DType::F32));
            let out = add(&x, &y).unwrap();
            assert_eq!(out.dims(), shape);
            let expected = reference::add(&values(&x), &values(&y));
            assert_eq!(values(&out), expected, "{shape:?}");
            if shape.len() > 1 {
                assert_eq!(values(&add(&strided(&x), &y).unwrap()), expected, "{shape:?}");
            }
        }
    }

    #[test]
    fn wrong_arguments_are_named() {
        let x = random_tensor(1, &[2, 7], DType::F32);
        assert_error(
            add(&x, &x.narrow(0, 0, 1).unwrap()),
            "y: expected shape [2, 7], found [1, 7]",
        );
        assert_error(
            add(&x, &x.to_dtype(DType::BF16).unwrap()),
            "y: expected dtype f32, found BF16",
        );
    }
}
