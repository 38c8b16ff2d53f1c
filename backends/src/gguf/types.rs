//! How the numbers of a tensor are stored: each type's name, and the size of its blocks.

use candle_core::DType;

/// A type of stored numbers that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// Each type with its number and name in the format, the numbers of a block, and its bytes.
const TYPES: [(TensorType, u32, &str, usize, usize); 13] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
];

/// Types of the format that cannot be read.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl TensorType {
    /// The type of this number; or why it cannot be read, in words that follow the tensor's name.
    pub(super) fn of(id: u32) -> Result<Self, String> {
        if let Some((kind, ..)) = TYPES.iter().find(|(_, known, ..)| *known == id) {
            return Ok(*kind);
        }
        let other = OTHERS.iter().find(|(known, _)| *known == id);
        let name = other.map_or_else(|| format!("type {id}"), |(_, name)| (*name).to_owned());
        let known: Vec<&str> = TYPES.iter().map(|(_, _, name, ..)| *name).collect();
        let known = known.join(", ");
        Err(format!("is stored as {name}, which is not supported (supported: {known})"))
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        let row = TYPES.iter().find(|(kind, ..)| *kind == self);
        row.unwrap_or_else(|| unreachable!("every type has a row"))
    }

    /// As the format calls it.
    pub(crate) fn name(self) -> &'static str {
        self.row().2
    }

    /// Numbers that are stored together.
    pub(crate) fn block_len(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of so many numbers, which are whole blocks.
    pub(crate) fn num_bytes(self, len: usize) -> usize {
        len / self.block_len() * self.block_bytes()
    }

    /// What its numbers are computed in, unless somebody asks for something else.
    pub(crate) fn computed(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            _ => DType::BF16,
        }
    }
}
