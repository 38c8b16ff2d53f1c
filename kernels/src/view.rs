//! From candle tensors to slices: every shape, dtype, layout and device check of the crate.
//!
//! A [`Locked`] tensor holds candle's read lock for as long as its slices are borrowed.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use half::{bf16, f16};

use crate::element::Element;
use crate::simd::memory::prefer_huge_pages;
use crate::{KernelError, Result};

/// The dimensions of `x`, which must have as many as `names` has.
pub(crate) fn dims<const R: usize>(
    x: &Tensor,
    argument: &'static str,
    names: [&str; R],
) -> Result<[usize; R]> {
    x.dims().try_into().map_err(|_| KernelError::Shape {
        argument,
        expected: names.join(", "),
        found: x.dims().to_vec(),
    })
}

/// Checks that `x` has exactly the dimensions `expected`.
pub(crate) fn shape(x: &Tensor, argument: &'static str, expected: &[usize]) -> Result<()> {
    if x.dims() == expected {
        return Ok(());
    }
    let expected = expected.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    Err(KernelError::Shape { argument, expected, found: x.dims().to_vec() })
}

/// `hidden`, of a norm that scales the rows of `x` `[.., hidden]` by `weight` `[hidden]`; not 0.
pub(crate) fn norm_size(x: &Tensor, weight: &Tensor) -> Result<usize> {
    let [hidden] = dims(weight, "weight", ["hidden"])?;
    if hidden == 0 {
        let expected = "hidden > 0".to_owned();
        return Err(KernelError::Shape { argument: "weight", expected, found: vec![0] });
    }
    if x.dims().last() != Some(&hidden) {
        let expected = format!(".., {hidden}");
        return Err(KernelError::Shape { argument: "x", expected, found: x.dims().to_vec() });
    }
    Ok(hidden)
}

/// Checks that `found`, the length of the list `argument`, is `expected`.
pub(crate) fn len(argument: &'static str, expected: usize, found: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Value {
        argument,
        rule: format!("{expected} entries"),
        found: found.to_string(),
    })
}

/// Checks that every entry of `indices` is below `limit`.
pub(crate) fn indices(argument: &'static str, indices: &[u32], limit: usize) -> Result<()> {
    match indices.iter().position(|&index| index as usize >= limit) {
        None => Ok(()),
        Some(at) => Err(KernelError::Index { argument, at, limit, found: indices[at] as usize }),
    }
}

/// Checks that `x` holds f32, f16 or bf16.
pub(crate) fn float_dtype(x: &Tensor, argument: &'static str) -> Result<()> {
    match x.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        found => Err(KernelError::DType { argument, expected: "f32, f16 or bf16", found }),
    }
}

/// A tensor of `data`, on the CPU.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

/// Calls `f` with the elements of `out`, which must be contiguous, on the CPU, of type `E`, and
/// share its memory with none of `read`; whoever else reads `out` in the meantime waits.
pub(crate) fn write<E: Element>(
    out: &Tensor,
    argument: &'static str,
    read: &[Option<&Locked<'_>>],
    f: impl FnOnce(&mut [E]),
) -> Result<()> {
    let locked = Locked::new(out, argument)?;
    if locked.layout.contiguous_offsets().is_none() {
        return Err(wrong_layout(argument, "a contiguous tensor", locked.layout));
    }
    if let Some(other) = read.iter().flatten().find(|other| other.memory() == locked.memory()) {
        return Err(shared(argument, other.argument));
    }
    if out.dtype() != E::DTYPE {
        let (expected, found) = (E::DTYPE.as_str(), out.dtype());
        return Err(KernelError::DType { argument, expected, found });
    }
    drop(locked);
    // Candle takes a tensor of nothing for one that overlaps itself.
    if out.elem_count() == 0 {
        f(&mut []);
        return Ok(());
    }
    out.inplace_op1(&Write { f: Cell::new(Some(f)), elements: PhantomData })?;
    Ok(())
}

/// Checks that two tensors that will be written do not share their memory.
pub(crate) fn distinct(x: (&Tensor, &'static str), y: (&Tensor, &'static str)) -> Result<()> {
    // One after the other: a lock that is held twice may wait for itself.
    let memory = |(x, argument)| Ok::<_, KernelError>(Locked::new(x, argument)?.memory());
    if memory(x)? == memory(y)? {
        return Err(shared(x.1, y.1));
    }
    Ok(())
}

/// [`write()`] as candle's in-place operation: candle holds the write lock.
struct Write<F, E> {
    /// Called once.
    f: Cell<Option<F>>,
    elements: PhantomData<E>,
}

impl<E: Element, F: FnOnce(&mut [E])> InplaceOp1 for Write<F, E> {
    fn name(&self) -> &'static str {
        "write"
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let parts = (layout.contiguous_offsets(), E::slice_mut(out), self.f.take());
        let (Some((start, end)), Some(out), Some(f)) = parts else {
            unreachable!("`write` checked layout and dtype, and runs this once");
        };
        f(&mut out[start..end]);
        Ok(())
    }
}

fn shared(argument: &'static str, other: &'static str) -> KernelError {
    let rule = "memory that no other argument shares".to_owned();
    KernelError::Value { argument, rule, found: format!("that of {other}") }
}

/// A tensor to be written, of zeros until then, f32 and on the CPU: in large pages where it is large,
/// because having the system clear each small page of it would take longer than a product of a few
/// dozen rows.
pub fn empty(shape: &[usize]) -> Result<Tensor> {
    const LARGE: usize = 8 << 20;
    let mut out = vec![0.0_f32; shape.iter().product()];
    if size_of_val(out.as_slice()) >= LARGE {
        prefer_huge_pages(&mut out);
    }
    tensor(out, shape)
}

/// The elements of a tensor in row-major order, in the dtype it was stored in.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl Floats<'_> {
    /// How much memory they take.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32(data) => size_of_val(data),
            Self::F16(data) => size_of_val(data),
            Self::Bf16(data) => size_of_val(data),
        }
    }
}

/// `count` rows of `len` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) len: usize,
    pub(crate) count: usize,
}

impl<'a> Rows<'a> {
    /// Row `t`.
    #[inline(always)]
    pub(crate) fn row(self, t: usize) -> &'a [f32] {
        &self.data[t * self.stride..][..self.len]
    }

    /// The rows `range`, which must be among these.
    pub(crate) fn part(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.count, "{range:?} of {}", self.count);
        // No rows begin nowhere: an offset may lie beyond the data then.
        let data = if range.is_empty() { &[] } else { &self.data[range.start * self.stride..] };
        Self { data, count: range.len(), ..self }
    }
}

/// A tensor on the CPU whose elements can be borrowed.
pub(crate) struct Locked<'a> {
    argument: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Locked<'a> {
    /// Locks `x` for reading; it must be on the CPU.
    pub(crate) fn new(x: &'a Tensor, argument: &'static str) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        match &*storage {
            Storage::Cpu(_) => Ok(Self { argument, storage, layout }),
            _ => Err(KernelError::device(argument, x.device())),
        }
    }

    fn cpu(&self) -> &CpuStorage {
        match &*self.storage {
            Storage::Cpu(storage) => storage,
            _ => unreachable!("`new` accepts tensors on the cpu only"),
        }
    }

    /// Where its memory is managed: the same for all tensors that share it.
    fn memory(&self) -> *const Storage {
        &raw const *self.storage
    }

    /// See [`rows`].
    pub(crate) fn rows(&self) -> Result<Rows<'_>> {
        rows(self.cpu(), self.layout, self.argument)
    }

    /// The elements of a contiguous f32 tensor.
    pub(crate) fn f32s(&self) -> Result<&[f32]> {
        match self.floats()? {
            Floats::F32(data) => Ok(data),
            _ => Err(wrong_dtype(self.argument, "f32", self.cpu())),
        }
    }

    /// The elements of a contiguous f32, f16 or bf16 tensor.
    pub(crate) fn floats(&self) -> Result<Floats<'_>> {
        let Some((start, end)) = self.layout.contiguous_offsets() else {
            return Err(wrong_layout(self.argument, "a contiguous tensor", self.layout));
        };
        match self.cpu() {
            CpuStorage::F32(data) => Ok(Floats::F32(&data[start..end])),
            CpuStorage::F16(data) => Ok(Floats::F16(&data[start..end])),
            CpuStorage::BF16(data) => Ok(Floats::Bf16(&data[start..end])),
            other => Err(wrong_dtype(self.argument, "f32, f16 or bf16", other)),
        }
    }
}

/// The tensor as one row per entry of its first dimension; f32, and contiguous but for the
/// distance between those rows. A vector is one row.
pub(crate) fn rows<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
    argument: &'static str,
) -> Result<Rows<'a>> {
    let CpuStorage::F32(data) = storage else { return Err(wrong_dtype(argument, "f32", storage)) };
    let (dims, strides) = (layout.dims(), layout.stride());
    let split = usize::from(dims.len() > 1);
    let mut len = 1;
    for (&dim, &stride) in dims[split..].iter().zip(&strides[split..]).rev() {
        // The stride of a dimension that is never stepped along has no meaning.
        if dim > 1 && stride != len {
            return Err(wrong_layout(argument, "rows that are contiguous", layout));
        }
        len *= dim;
    }
    let count = dims[..split].iter().product();
    let stride = if count > 1 { strides[0] } else { len };
    let data = if count * len == 0 { &[] } else { &data[layout.start_offset()..] };
    Ok(Rows { data, stride: if len == 0 { 0 } else { stride }, len, count })
}

fn wrong_dtype(argument: &'static str, expected: &'static str, found: &CpuStorage) -> KernelError {
    KernelError::DType { argument, expected, found: found.dtype() }
}

fn wrong_layout(argument: &'static str, expected: &'static str, layout: &Layout) -> KernelError {
    let (shape, strides) = (layout.dims().to_vec(), layout.stride().to_vec());
    KernelError::Layout { argument, expected, shape, strides }
}
