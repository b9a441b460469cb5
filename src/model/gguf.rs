//! Reads the header of a GGUF file: metadata and where each tensor lies.
//!
//! Our own reader rather than candle's, because it works on mapped memory without copying, bounds every
//! count by the bytes that are really there, and can say which field is wrong. It interprets nothing:
//! `spec.rs` and the tokenizer do.
//!
//! Source: ggml's `docs/gguf.md`, versions 2 and 3, little-endian.

use std::collections::HashMap;
use std::ops::Range;

use crate::kernel::Format;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type; one above the range of `i64` is read as its largest.
    Int(i64),
    /// 32 or 64 bits.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// Numbers, as 32 bits.
    Floats(Vec<f32>),
    /// Texts.
    Strings(Vec<String>),
    /// A list of truth values or of lists, which nothing here needs; checked and left out.
    Other,
}

/// Metadata by key, with errors that name the key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(HashMap<String, Value>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The keys that start with a text, in order.
    pub fn keys_under(&self, start: &str) -> Vec<&str> {
        let keys = self.0.keys().map(String::as_str);
        let mut found: Vec<&str> = keys.filter(|key| key.starts_with(start)).collect();
        found.sort_unstable();
        found
    }

    /// A text. Errors: the key holds something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>, String> {
        self.typed(key, "text", |v| {
            if let Value::String(s) = v {
                Some(s.as_str())
            } else {
                None
            }
        })
    }

    /// A count or id. Errors: the key holds something else, or a number outside `u32`.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, String> {
        self.typed(key, "a whole number below 2^32", |v| match v {
            Value::Int(i) => u32::try_from(*i).ok(),
            _ => None,
        })
    }

    /// A number. Errors: the key holds something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, String> {
        self.typed(key, "a number", |v| match v {
            Value::Float(x) => Some(*x as f32),
            Value::Int(i) => Some(*i as f32),
            _ => None,
        })
    }

    /// A truth value. Errors: the key holds something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "true or false", |v| {
            if let Value::Bool(b) = v {
                Some(*b)
            } else {
                None
            }
        })
    }

    /// A list of texts. Errors: the key holds something else.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, String> {
        self.typed(key, "a list of texts", |v| match v {
            Value::Strings(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// A list of whole numbers. Errors: the key holds something else, or a number outside `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, String> {
        self.typed(key, "a list of whole numbers", |v| match v {
            Value::Ints(items) => items.iter().map(|&i| i32::try_from(i).ok()).collect(),
            _ => None,
        })
    }

    /// A list of numbers. Errors: the key holds something else.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, String> {
        self.typed(key, "a list of numbers", |v| match v {
            Value::Floats(items) => Some(items.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => read(value)
                .map(Some)
                .ok_or_else(|| format!("metadata `{key}` should be {expected}")),
        }
    }
}

/// Where a tensor lies and what it holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorInfo {
    /// Dimensions, slowest first: `[rows, columns]`, the reverse of the order in the file.
    pub(super) shape: Vec<usize>,
    /// Element type.
    pub(super) format: Format,
    /// Bytes within the file.
    pub(super) range: Range<usize>,
}

/// A parsed header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

const MAX_DIMENSIONS: u32 = 4;
const MAX_ARRAY_DEPTH: u32 = 4;
const DEFAULT_ALIGNMENT: u32 = 32;

/// Reads the header of a whole file.
///
/// Errors: a sentence naming the field or tensor that is wrong, truncated or not served.
/// Cost: allocates at most some eight times the metadata's own bytes; tensors are not touched.
pub(super) fn parse(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { file, at: 0 };
    if reader.take(4, "the magic number")? != b"GGUF" {
        return Err("is not a GGUF file (it does not begin with `GGUF`)".to_owned());
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "GGUF version {version} is not read; versions 2 and 3 are"
        ));
    }
    let num_tensors = reader.u64("the tensor count")?;
    let num_values = reader.u64("the metadata count")?;
    let mut metadata = HashMap::new();
    for _ in 0..num_values {
        let key = reader.string("a metadata key")?;
        let kind = reader.u32(&key)?;
        let value = reader.value(kind, &key, 0)?;
        metadata.insert(key, value);
    }
    let metadata = Metadata(metadata);
    let alignment = metadata
        .u32("general.alignment")?
        .unwrap_or(DEFAULT_ALIGNMENT) as usize;
    if !alignment.is_power_of_two() {
        return Err(format!(
            "metadata `general.alignment` is {alignment}, not a power of two"
        ));
    }
    let mut entries = Vec::new();
    for _ in 0..num_tensors {
        entries.push(reader.tensor()?);
    }
    let data = reader.at.next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for Entry {
        name,
        shape,
        format,
        offset,
    } in entries
    {
        let range = place(&name, &shape, format, offset, data, file.len())?;
        if tensors
            .insert(
                name.clone(),
                TensorInfo {
                    shape,
                    format,
                    range,
                },
            )
            .is_some()
        {
            return Err(format!("tensor `{name}` stands twice in the header"));
        }
    }
    Ok(Header { metadata, tensors })
}

fn place(
    name: &str,
    shape: &[usize],
    format: Format,
    offset: u64,
    data: usize,
    file_len: usize,
) -> Result<Range<usize>, String> {
    let columns = shape.last().copied().unwrap_or(1);
    let rows = shape
        .iter()
        .rev()
        .skip(1)
        .try_fold(1_usize, |n, &d| n.checked_mul(d));
    let row_bytes = format.row_bytes(columns).ok_or_else(|| {
        format!(
            "tensor `{name}` has rows of {columns} values, not a multiple of {} as {format} needs",
            format.block_len()
        )
    })?;
    let end = rows
        .and_then(|rows| rows.checked_mul(row_bytes))
        .zip(
            usize::try_from(offset)
                .ok()
                .and_then(|offset| data.checked_add(offset)),
        )
        .and_then(|(len, start)| Some((start, start.checked_add(len)?)));
    match end {
        Some((start, end)) if end <= file_len => Ok(start..end),
        _ => Err(format!(
            "is truncated: tensor `{name}` of shape {shape:?} ({format}) ends beyond the file's {file_len} bytes"
        )),
    }
}

struct Entry {
    name: String,
    shape: Vec<usize>,
    format: Format,
    offset: u64,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        let bytes = self
            .at
            .checked_add(len)
            .and_then(|end| self.file.get(self.at..end))
            .ok_or_else(|| format!("is truncated: the file ends within {what}"))?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let len = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| format!("{what} is not UTF-8 text"))
    }

    fn value(&mut self, kind: u32, key: &str, depth: u32) -> Result<Value, String> {
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Int(self.int(kind, key)?),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.take(1, key)?[0] != 0),
            8 => Value::String(self.string(&format!("metadata `{key}`"))?),
            9 if depth < MAX_ARRAY_DEPTH => self.list(key, depth)?,
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(format!("metadata `{key}` has the unknown type {other}")),
        })
    }

    fn int(&mut self, kind: u32, key: &str) -> Result<i64, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array(key)?).into(),
            1 => i8::from_le_bytes(self.array(key)?).into(),
            2 => u16::from_le_bytes(self.array(key)?).into(),
            3 => i16::from_le_bytes(self.array(key)?).into(),
            4 => u32::from_le_bytes(self.array(key)?).into(),
            5 => i32::from_le_bytes(self.array(key)?).into(),
            10 => i64::try_from(u64::from_le_bytes(self.array(key)?)).unwrap_or(i64::MAX),
            _ => i64::from_le_bytes(self.array(key)?),
        })
    }

    fn list(&mut self, key: &str, depth: u32) -> Result<Value, String> {
        let kind = self.u32(key)?;
        let len = self.u64(key)?;
        // Every item takes at least one byte, so a count beyond the file is a lie.
        if len > (self.file.len() - self.at) as u64 {
            return Err(format!(
                "is truncated: the file ends within metadata `{key}`"
            ));
        }
        Ok(match kind {
            0..=5 | 10 | 11 => Value::Ints(
                (0..len)
                    .map(|_| self.int(kind, key))
                    .collect::<Result<_, _>>()?,
            ),
            6 => {
                let number = |_| self.array(key).map(f32::from_le_bytes);
                Value::Floats((0..len).map(number).collect::<Result<_, _>>()?)
            }
            12 => {
                let number = |_| {
                    self.array(key)
                        .map(|bytes| f64::from_le_bytes(bytes) as f32)
                };
                Value::Floats((0..len).map(number).collect::<Result<_, _>>()?)
            }
            8 => {
                let what = format!("metadata `{key}`");
                Value::Strings(
                    (0..len)
                        .map(|_| self.string(&what))
                        .collect::<Result<_, _>>()?,
                )
            }
            _ => {
                for _ in 0..len {
                    self.value(kind, key, depth + 1)?;
                }
                Value::Other
            }
        })
    }

    fn tensor(&mut self) -> Result<Entry, String> {
        let name = self.string("a tensor's name")?;
        let dimensions = self.u32(&name)?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(&name)?;
            shape.push(
                usize::try_from(size)
                    .map_err(|_| format!("tensor `{name}` has a dimension of {size}"))?,
            );
        }
        shape.reverse();
        let kind = self.u32(&name)?;
        let format = format_of(kind).ok_or_else(|| {
            format!(
                "tensor `{name}` has type {}, which is not read; F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K are",
                type_name(kind)
            )
        })?;
        let offset = self.u64(&name)?;
        Ok(Entry {
            name,
            shape,
            format,
            offset,
        })
    }
}

fn format_of(kind: u32) -> Option<Format> {
    Some(match kind {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        10 => Format::Q2K,
        11 => Format::Q3K,
        12 => Format::Q4K,
        13 => Format::Q5K,
        14 => Format::Q6K,
        30 => Format::Bf16,
        _ => return None,
    })
}

fn type_name(kind: u32) -> String {
    let known = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24..=27 => "whole numbers",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("number {other}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of two values and one 2 x 32 Q8_0 tensor, with its 68 bytes of data.
    fn sample() -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend(1_u64.to_le_bytes());
        file.extend(2_u64.to_le_bytes());
        let string = |file: &mut Vec<u8>, s: &str| {
            file.extend((s.len() as u64).to_le_bytes());
            file.extend(s.as_bytes());
        };
        string(&mut file, "general.architecture");
        file.extend(8_u32.to_le_bytes());
        string(&mut file, "llama");
        string(&mut file, "ids");
        file.extend(9_u32.to_le_bytes());
        file.extend(4_u32.to_le_bytes());
        file.extend(2_u64.to_le_bytes());
        file.extend(7_u32.to_le_bytes());
        file.extend(9_u32.to_le_bytes());
        string(&mut file, "w");
        file.extend(2_u32.to_le_bytes());
        file.extend(32_u64.to_le_bytes());
        file.extend(2_u64.to_le_bytes());
        file.extend(8_u32.to_le_bytes());
        file.extend(0_u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32), 0);
        file.resize(file.len() + 68, 0);
        file
    }

    #[test]
    fn a_header_is_read() {
        let header = parse(&sample()).expect("a sound header");
        assert_eq!(
            header.metadata.string("general.architecture"),
            Ok(Some("llama"))
        );
        assert_eq!(header.metadata.i32s("ids"), Ok(Some(vec![7, 9])));
        assert_eq!(header.tensors["w"].shape, [2, 32]);
        assert_eq!(header.tensors["w"].range.len(), 68);
        assert!(header.metadata.u32("general.architecture").is_err());
    }

    #[test]
    fn every_truncation_is_an_error_and_never_a_panic() {
        let file = sample();
        for len in 0..file.len() {
            assert!(parse(&file[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_flipped_byte_is_survived() {
        let file = sample();
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut broken = file.clone();
                broken[at] ^= 1 << bit;
                let _ = parse(&broken);
            }
        }
    }

    #[test]
    fn an_unknown_type_names_the_tensor() {
        let mut file = sample();
        let at = file.len() - 68 - 32;
        let kind = file[..]
            .windows(4)
            .rposition(|w| w == 8_u32.to_le_bytes())
            .expect("the type");
        assert!(kind > at - 64);
        file[kind] = 23;
        let error = parse(&file).expect_err("IQ4_XS is not read");
        assert!(error.contains("`w`") && error.contains("IQ4_XS"), "{error}");
    }
}
