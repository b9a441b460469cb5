//! Rotary position tables.
//!
//! Separate from the kernel that applies them because a model builds one table at load, from frequencies that its own
//! scaling rules produced, and shares it between layers. Scaling rules do not live here.

/// Which two elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Element `i` with `i + rotary_dims / 2`: transformers' layout.
    Halves,
    /// Element `2i` with `2i + 1`: the layout of `llama` GGUF files, whose q and k rows are permuted to suit.
    Neighbours,
}

/// Cosines and sines for every position a model may reach.
///
/// Angles are `inverse_frequency * position`, rounded to f32 before the cosine, as transformers computes them.
/// Cost: `8 * rotary_dims` bytes a position for neighbours, half that for halves.
/// Source: `RoFormer` (Su et al. 2021) eq. 34.
pub struct Rope {
    pairing: Pairing,
    rotary_dims: usize,
    /// `[positions, 2, width]`: cosines then sines. For neighbours each is doubled, and sines carry their sign.
    table: Vec<f32>,
    width: usize,
}

impl Rope {
    /// Builds the table for positions `0..max_positions`.
    ///
    /// The first `2 * inverse_frequencies.len()` elements of a head are rotated and the rest kept.
    /// `attention_factor` multiplies every cosine and sine (1 unless the scaling rule says otherwise).
    #[must_use]
    pub fn new(
        inverse_frequencies: &[f32],
        attention_factor: f32,
        pairing: Pairing,
        max_positions: usize,
    ) -> Self {
        let rotary_dims = 2 * inverse_frequencies.len();
        let width = match pairing {
            Pairing::Halves => rotary_dims / 2,
            Pairing::Neighbours => rotary_dims,
        };
        let mut table = vec![0.0; max_positions * 2 * width];
        for (position, row) in table.chunks_exact_mut((2 * width).max(1)).enumerate() {
            let (cosines, sines) = row.split_at_mut(width);
            for (i, &frequency) in inverse_frequencies.iter().enumerate() {
                let (sin, cos) = f64::from(frequency * position as f32).sin_cos();
                let (cos, sin) = (cos as f32 * attention_factor, sin as f32 * attention_factor);
                match pairing {
                    Pairing::Halves => {
                        cosines[i] = cos;
                        sines[i] = sin;
                    }
                    Pairing::Neighbours => {
                        cosines[2 * i..2 * i + 2].copy_from_slice(&[cos, cos]);
                        sines[2 * i..2 * i + 2].copy_from_slice(&[-sin, sin]);
                    }
                }
            }
        }
        Self {
            pairing,
            rotary_dims,
            table,
            width,
        }
    }

    /// Which elements turn together.
    #[must_use]
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// Elements of a head that are rotated.
    #[must_use]
    pub fn rotary_dims(&self) -> usize {
        self.rotary_dims
    }

    /// Positions the table covers.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.table.len() / (2 * self.width).max(1)
    }

    /// Cosines and sines of one position.
    ///
    /// Panics: when the table is shorter.
    pub(super) fn row(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * 2 * self.width;
        self.table[start..start + 2 * self.width].split_at(self.width)
    }
}
