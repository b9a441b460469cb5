//! Weight formats as they lie on disk, and a borrowed matrix in one of them.
//!
//! Separate because loaders need sizes without needing arithmetic. A matrix is never copied or repacked: a [`MatrixView`]
//! is a checked window over mapped bytes, row-major, of any alignment.

use std::fmt;

use super::KernelError;

/// How the numbers of a weight matrix are stored.
///
/// The quantised formats are GGUF's; a row is a whole number of blocks.
/// Source: ggml `ggml-common.h`, `block_q4_0` and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 32 weights of 4 bits under one f16 scale.
    Q4_0,
    /// 32 weights of 4 bits under one f16 scale, above one f16 minimum.
    Q4_1,
    /// As [`Format::Q4_0`] with a fifth bit kept apart.
    Q5_0,
    /// As [`Format::Q4_1`] with a fifth bit kept apart.
    Q5_1,
    /// 32 weights of 8 bits under one f16 scale.
    Q8_0,
    /// 256 weights of 2 bits; each 16 have a 4-bit scale and a 4-bit minimum under two f16 factors.
    Q2K,
    /// 256 weights of 3 bits; each 16 have a 6-bit signed scale under one f16 factor.
    Q3K,
    /// 256 weights of 4 bits; each 32 have a 6-bit scale and a 6-bit minimum under two f16 factors.
    Q4K,
    /// As [`Format::Q4K`] with a fifth bit kept apart.
    Q5K,
    /// 256 weights of 6 bits; each 16 have a signed byte scale under one f16 factor.
    Q6K,
}

impl Format {
    /// Every format, in declaration order.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Elements in one block; 1 for the unquantised formats.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes in one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes in a row of `k` elements, or `None` when `k` is not a whole number of blocks.
    #[must_use]
    pub const fn row_bytes(self, k: usize) -> Option<usize> {
        if k.is_multiple_of(self.block_len()) {
            (k / self.block_len()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// A weight matrix lying in someone else's bytes.
///
/// Shapes: `[n, k]`, row-major: `n` output features of `k` input features, exactly as in GGUF and safetensors files.
/// Invariants: `data.len() == n * format.row_bytes(k)`; `k > 0`.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    format: Format,
    n: usize,
    k: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> MatrixView<'a> {
    /// Checks that `data` is an `[n, k]` matrix in `format`.
    ///
    /// Errors: [`KernelError::Shape`] when `k` is zero or not a whole number of blocks, or when `data` has another length.
    pub fn new(format: Format, n: usize, k: usize, data: &'a [u8]) -> Result<Self, KernelError> {
        let shape_error = |problem| KernelError::Shape {
            format,
            n,
            k,
            len: data.len(),
            problem,
        };
        if k == 0 {
            return Err(shape_error("a row has no elements"));
        }
        let row_bytes = format
            .row_bytes(k)
            .ok_or_else(|| shape_error("a row is not a whole number of blocks"))?;
        if n.checked_mul(row_bytes) != Some(data.len()) {
            return Err(shape_error("the data has another length"));
        }
        Ok(Self {
            format,
            n,
            k,
            row_bytes,
            data,
        })
    }

    /// How the weights are stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output features: rows on disk, columns of the product.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes from one row to the next.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes of all rows.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The rows `first..first + count` as a matrix of their own.
    ///
    /// Panics: when the rows do not exist.
    #[must_use]
    pub fn rows(&self, first: usize, count: usize) -> Self {
        Self {
            n: count,
            data: &self.data[first * self.row_bytes..(first + count) * self.row_bytes],
            ..*self
        }
    }
}

impl fmt::Debug for MatrixView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixView({} [{}, {}])", self.format, self.n, self.k)
    }
}
