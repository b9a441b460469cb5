//! Named tensors where they lie: in mapped files, in the binary itself, or in memory.
//!
//! Matrices are never copied on loading; kernels read them in the layout of the file. The map is shared
//! and read-only. The one `unsafe` here is the mapping itself.

use std::collections::HashMap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::gguf::{self, Metadata};
use super::{Format, ModelError};
use crate::kernel::MatrixView;

/// Bytes that outlive whoever reads them.
#[derive(Debug, Clone)]
enum Bytes {
    Mapped(Arc<Mmap>),
    Embedded(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

#[derive(Debug, Clone)]
struct Tensor {
    format: Format,
    shape: Vec<usize>,
    bytes: Bytes,
    range: Range<usize>,
}

impl Tensor {
    fn data(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

/// A matrix of a model: `[rows, columns]`, row-major, in the format of its file.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    tensor: Tensor,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// The matrix as kernels take it.
    pub(super) fn view(&self) -> MatrixView<'_> {
        MatrixView::new(
            self.tensor.format,
            self.rows,
            self.columns,
            self.tensor.data(),
        )
        .expect("the shape was checked when the matrix was looked up")
    }
}

const SPLIT_NO: &str = "split.no";
const SPLIT_COUNT: &str = "split.count";
const SPLIT_TENSORS: &str = "split.tensors.count";

/// All tensors of one model by name, with the name of the file for error messages.
#[derive(Debug)]
pub(super) struct Weights {
    path: String,
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Makes weights from parts in memory.
    pub(super) fn from_parts(
        path: String,
        parts: impl IntoIterator<Item = (String, Format, Vec<usize>, Vec<u8>)>,
    ) -> Self {
        let tensors = parts
            .into_iter()
            .map(|(name, format, shape, data)| {
                let range = 0..data.len();
                (
                    name,
                    Tensor {
                        format,
                        shape,
                        bytes: Bytes::Owned(data.into()),
                        range,
                    },
                )
            })
            .collect();
        Self { path, tensors }
    }

    /// Maps a GGUF file, or all parts of one that was split, and reads the headers; the metadata is the first part's.
    ///
    /// Errors: a part that is missing or belongs to another model, and one that is given in place of the first.
    /// Source: ggml's `gguf-split`: `split.no`, `split.count` and `split.tensors.count`.
    pub(super) fn open_gguf(path: &Path) -> Result<(Metadata, Self), ModelError> {
        let one = |path: &Path| -> Result<(Metadata, Self), ModelError> {
            let bytes = Bytes::Mapped(Arc::new(map(path)?));
            Self::from_gguf(bytes, path.display().to_string())
        };
        let malformed =
            |problem: String| ModelError::malformed(path.display().to_string(), problem);
        let (metadata, mut weights) = one(path)?;
        let number = |metadata: &Metadata, key| metadata.u32(key).map_err(malformed);
        let count = number(&metadata, SPLIT_COUNT)?.unwrap_or(1);
        if count <= 1 {
            return Ok((metadata, weights));
        }
        let own = format!("-00001-of-{count:05}.gguf");
        let name = path.to_str().and_then(|name| name.strip_suffix(&own));
        let first = number(&metadata, SPLIT_NO)?.unwrap_or(0) == 0;
        let Some(name) = name.filter(|_| first) else {
            return Err(malformed(format!(
                "is a part of a model in {count} files: give the first one, whose name ends in `{own}`"
            )));
        };
        for part in 2..=count {
            let path = format!("{name}-{part:05}-of-{count:05}.gguf");
            let (own, more) = one(Path::new(&path))?;
            if number(&own, SPLIT_NO)? != Some(part - 1)
                || number(&own, SPLIT_COUNT)? != Some(count)
            {
                return Err(ModelError::malformed(
                    path,
                    format!("is not part {part} of {count}"),
                ));
            }
            for (tensor_name, tensor) in more.tensors {
                if weights
                    .tensors
                    .insert(tensor_name.clone(), tensor)
                    .is_some()
                {
                    return Err(ModelError::malformed(
                        path,
                        format!("tensor `{tensor_name}` stands in another part too"),
                    ));
                }
            }
        }
        let told = number(&metadata, SPLIT_TENSORS)?;
        if told.is_some_and(|told| told as usize != weights.tensors.len()) {
            return Err(malformed(format!(
                "promises {} tensors, and its {count} parts hold {}",
                told.unwrap_or_default(),
                weights.tensors.len()
            )));
        }
        Ok((metadata, weights))
    }

    /// Reads a GGUF file that is part of the binary.
    pub(super) fn embedded_gguf(
        bytes: &'static [u8],
        name: &str,
    ) -> Result<(Metadata, Self), ModelError> {
        Self::from_gguf(Bytes::Embedded(bytes), name.to_owned())
    }

    fn from_gguf(bytes: Bytes, path: String) -> Result<(Metadata, Self), ModelError> {
        let header =
            gguf::parse(&bytes).map_err(|problem| ModelError::malformed(&path, problem))?;
        let tensors = header
            .tensors
            .into_iter()
            .map(
                |(
                    name,
                    gguf::TensorInfo {
                        shape,
                        format,
                        range,
                    },
                )| {
                    (
                        name,
                        Tensor {
                            format,
                            shape,
                            bytes: bytes.clone(),
                            range,
                        },
                    )
                },
            )
            .collect();
        Ok((header.metadata, Self { path, tensors }))
    }

    /// Maps one or more safetensors files.
    ///
    /// Errors: a file that cannot be read, a header that is wrong or truncated, a type that is not served,
    /// a tensor that stands in two files.
    pub(super) fn open_safetensors(
        folder: &Path,
        files: &[std::path::PathBuf],
    ) -> Result<Self, ModelError> {
        let mut tensors = HashMap::new();
        for path in files {
            let name = path.display().to_string();
            let map = Arc::new(map(path)?);
            let base = map.as_ptr() as usize;
            let parsed = SafeTensors::deserialize(&map).map_err(|e| {
                ModelError::malformed(&name, format!("is not a whole safetensors file ({e})"))
            })?;
            for (tensor_name, view) in parsed.tensors() {
                let format = match view.dtype() {
                    Dtype::F32 => Format::F32,
                    Dtype::F16 => Format::F16,
                    Dtype::BF16 => Format::Bf16,
                    other => {
                        return Err(ModelError::unsupported(
                            &name,
                            format!(
                                "tensor `{tensor_name}` has type {other:?}, which is not read; F32, F16 and BF16 are"
                            ),
                        ));
                    }
                };
                let start = view.data().as_ptr() as usize - base;
                let tensor = Tensor {
                    format,
                    shape: view.shape().to_vec(),
                    bytes: Bytes::Mapped(Arc::clone(&map)),
                    range: start..start + view.data().len(),
                };
                if tensors.insert(tensor_name.clone(), tensor).is_some() {
                    return Err(ModelError::malformed(
                        &name,
                        format!("tensor `{tensor_name}` stands in another file too"),
                    ));
                }
            }
        }
        // With one file its name helps more than the folder's.
        let path = match files {
            [single] => single.as_path(),
            _ => folder,
        };
        Ok(Self {
            path: path.display().to_string(),
            tensors,
        })
    }

    /// Rewrites every matrix of floats in another float format; quantised ones stay.
    ///
    /// Peak memory: the result plus nothing, since sources are mapped.
    pub(super) fn convert_floats(&mut self, target: Format) {
        for tensor in self.tensors.values_mut() {
            let is_float = matches!(tensor.format, Format::F32 | Format::F16 | Format::Bf16);
            if !is_float || tensor.format == target || tensor.shape.len() < 2 {
                continue;
            }
            let values = floats(tensor.format, tensor.data());
            let data: Vec<u8> = match target {
                Format::F16 => values
                    .flat_map(|x| f16::from_f32(x).to_le_bytes())
                    .collect(),
                Format::Bf16 => values
                    .flat_map(|x| bf16::from_f32(x).to_le_bytes())
                    .collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            tensor.format = target;
            tensor.range = 0..data.len();
            tensor.bytes = Bytes::Owned(data.into());
        }
    }

    /// Whether a tensor exists.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The first dimension of a tensor, if it exists.
    pub(super) fn rows_of(&self, name: &str) -> Option<usize> {
        self.tensors.get(name)?.shape.first().copied()
    }

    /// Bytes of all tensors together.
    pub(super) fn size_bytes(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.range.len()).sum()
    }

    /// The format most bytes are in.
    pub(super) fn main_format(&self) -> Option<Format> {
        let mut sizes: Vec<(Format, usize)> = Vec::new();
        for tensor in self.tensors.values() {
            match sizes
                .iter_mut()
                .find(|(format, _)| *format == tensor.format)
            {
                Some((_, size)) => *size += tensor.range.len(),
                None => sizes.push((tensor.format, tensor.range.len())),
            }
        }
        sizes
            .into_iter()
            .max_by_key(|(_, size)| *size)
            .map(|(format, _)| format)
    }

    /// Looks up a matrix. Errors: missing, or of another shape.
    pub(super) fn matrix(
        &self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> Result<Matrix, ModelError> {
        let tensor = self.checked(name, &[rows, columns])?;
        MatrixView::new(tensor.format, rows, columns, tensor.data())?;
        Ok(Matrix {
            tensor: tensor.clone(),
            rows,
            columns,
        })
    }

    /// Looks up a vector as f32. Errors: missing, of another length, or quantised.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.checked(name, &[len])?;
        match tensor.format {
            Format::F32 | Format::F16 | Format::Bf16 => {
                Ok(floats(tensor.format, tensor.data()).collect())
            }
            other => Err(ModelError::malformed(
                &self.path,
                format!("tensor `{name}` is a vector in {other}; floats are expected"),
            )),
        }
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<&Tensor, ModelError> {
        let tensor = self.tensors.get(name).ok_or_else(|| {
            ModelError::malformed(&self.path, format!("tensor `{name}` is missing"))
        })?;
        if tensor.shape != shape {
            return Err(ModelError::malformed(
                &self.path,
                format!(
                    "tensor `{name}` has shape {:?}; the configuration asks for {shape:?}",
                    tensor.shape
                ),
            ));
        }
        Ok(tensor)
    }
}

/// Values of a float tensor, widened to f32 without loss.
fn floats(format: Format, data: &[u8]) -> Box<dyn Iterator<Item = f32> + '_> {
    match format {
        Format::F16 => Box::new(
            data.chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        ),
        Format::Bf16 => Box::new(
            data.chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        ),
        _ => Box::new(
            data.chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        ),
    }
}

#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Mmap, ModelError> {
    let io = |source| ModelError::Io {
        path: path.display().to_string(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only and only ever read as plain bytes and floats, for which any content is
    // valid. Whoever truncates a model file under a running server ends that server (SIGBUS), as with any
    // mapped program; the README says so.
    unsafe { Mmap::map(&file) }.map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of a split file: its number from 0, and tensors of 32 floats.
    fn part(number: u16, count: u16, total: i32, names: &[&str]) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((names.len() as u64).to_le_bytes());
        file.extend(3_u64.to_le_bytes());
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        for (key, value) in [(SPLIT_NO, number), (SPLIT_COUNT, count)] {
            text(&mut file, key);
            file.extend(2_u32.to_le_bytes());
            file.extend(value.to_le_bytes());
        }
        text(&mut file, SPLIT_TENSORS);
        file.extend(5_u32.to_le_bytes());
        file.extend(total.to_le_bytes());
        for (i, name) in names.iter().enumerate() {
            text(&mut file, name);
            file.extend(1_u32.to_le_bytes());
            file.extend(32_u64.to_le_bytes());
            file.extend(0_u32.to_le_bytes());
            file.extend((i as u64 * 128).to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.resize(file.len() + 128 * names.len(), 0);
        file
    }

    #[test]
    fn all_parts_of_a_split_model_are_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |number: u16| folder.path().join(format!("x-{number:05}-of-00002.gguf"));
        let put =
            |number: u16, bytes: Vec<u8>| std::fs::write(path(number), bytes).expect("a file");
        let open = |number: u16| {
            let opened = Weights::open_gguf(&path(number));
            opened.map(|(_, weights)| {
                let mut names: Vec<String> = weights.names().map(str::to_owned).collect();
                names.sort();
                names.join(" ")
            })
        };
        let refused = |number: u16| open(number).expect_err("a broken set").to_string();
        put(1, part(0, 2, 3, &["a", "b"]));
        put(2, part(1, 2, 3, &["c"]));
        assert_eq!(open(1).expect("both parts"), "a b c");
        assert!(refused(2).contains("give the first one"), "{}", refused(2));
        put(2, part(1, 2, 3, &["b"]));
        assert!(
            refused(1).contains("`b` stands in another part too"),
            "{}",
            refused(1)
        );
        put(2, part(1, 2, 3, &["c", "d"]));
        assert!(
            refused(1).contains("promises 3 tensors, and its 2 parts hold 4"),
            "{}",
            refused(1)
        );
        put(2, part(1, 3, 3, &["c"]));
        assert!(refused(1).contains("is not part 2 of 2"), "{}", refused(1));
        std::fs::remove_file(path(2)).expect("removed");
        assert!(
            refused(1).contains("x-00002-of-00002.gguf"),
            "{}",
            refused(1)
        );
    }
}
