//! A partial sum as bytes, from process to process.

use super::{Partial, Typed};
use crate::element::Compute;
use crate::error::Error;
use crate::order::{Extent, Kind, Order, Sums};

const MAGIC: [u8; 4] = *b"ISOP";
const VERSION: u8 = 1;
const HEADER: usize = 32;
const ORDERS: [Order; 2] = [Order::Row, Order::Batch];
const KINDS: [Kind; 5] = [Kind::Sum, Kind::Dot, Kind::Both, Kind::Largest, Kind::Pair];

impl Partial {
    /// The partial sum as bytes, for another process. Little-endian on every machine; version 1:
    ///
    /// | bytes | field | |
    /// |---|---|---|
    /// | 0..4 | magic | `ISOP` |
    /// | 4 | version | 1 |
    /// | 5 | order | 0 row, 1 batch |
    /// | 6 | kind | 0 sum, 1 dot, 2 dot and sum, 3 largest magnitude, 4 dot and sum of samples |
    /// | 7 | size of the compute type | 4 or 8 |
    /// | 8..16 | columns | u64 |
    /// | 16..24 | start | u64 |
    /// | 24..32 | end | u64 |
    /// | 32.. | values | raw terms, nodes from left to right, open leaf |
    ///
    /// How many values there are follows from the other fields: the raw terms up to the first leaf border, one node for
    /// each of the largest subtrees between that and the last border, and the open leaf where rows come after it. Raw
    /// terms are `[dy: columns][x_hat: columns]`, a node and the leaf `[dot: columns][sum: columns]`; in row order each
    /// column has 32 lanes. The bits of a value travel unchanged, those of a NaN too.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.sums {
            Typed::F32(sums) => write(sums, f32::to_le_bytes),
            Typed::F64(sums) => write(sums, f64::to_le_bytes),
        }
    }

    /// The partial sum that [`to_bytes`](Partial::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::PartialBytes`] if the bytes are none, are of another version, or are too few or too many.
    pub fn from_bytes(bytes: &[u8]) -> Result<Partial, Error> {
        let Some((header, values)) = bytes.split_first_chunk() else {
            return refuse("the length", bytes.len() as u64, format!("at least {HEADER}"));
        };
        let (extent, size) = read_header(header)?;
        let expected = extent.values() * size as u128 + HEADER as u128;
        if bytes.len() as u128 != expected {
            return refuse("the length", bytes.len() as u64, expected.to_string());
        }
        let sums = if size == 4 {
            Typed::F32(read(extent, values, f32::from_le_bytes))
        } else {
            Typed::F64(read(extent, values, f64::from_le_bytes))
        };
        Ok(Partial { sums })
    }
}

fn refuse<T>(name: &'static str, found: u64, expected: impl Into<String>) -> Result<T, Error> {
    Err(Error::PartialBytes { name, found, expected: expected.into() })
}

/// What the values are, and the bytes of one.
fn read_header(header: &[u8; HEADER]) -> Result<(Extent, usize), Error> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let [magic @ .., version, order, kind, size] = std::array::from_fn::<u8, 8, _>(|i| header[i]);
    if magic != MAGIC {
        let as_number = |magic| u64::from(u32::from_le_bytes(magic));
        return refuse("the magic number", as_number(magic), as_number(MAGIC).to_string());
    }
    if version != VERSION {
        return refuse("the version", version.into(), VERSION.to_string());
    }
    let Some(&order) = ORDERS.get(usize::from(order)) else {
        return refuse("the order", order.into(), "0 or 1");
    };
    let Some(&kind) = KINDS.get(usize::from(kind)) else {
        return refuse("the kind", kind.into(), "0 to 4");
    };
    if ![4, 8].contains(&size) {
        return refuse("the size of the compute type", size.into(), "4 or 8");
    }
    let count = |name, at| match usize::try_from(word(at)) {
        Ok(count) => Ok(count),
        Err(_) => refuse(name, word(at), format!("at most {}", usize::MAX)),
    };
    let (columns, start, end) = (count("the columns", 8)?, count("the start", 16)?, count("the end", 24)?);
    if end < start {
        return refuse("the end", end as u64, format!("at least {start}, the start"));
    }
    Ok((Extent { order, kind, columns, start, end }, usize::from(size)))
}

fn write<C: Compute, const N: usize>(sums: &Sums<C>, bytes_of: fn(C) -> [u8; N]) -> Vec<u8> {
    let Extent { order, kind, columns, start, end } = *sums.extent();
    let place = [ORDERS.iter().position(|o| *o == order), KINDS.iter().position(|k| *k == kind)];
    let [order, kind] = place.map(|place| place.unwrap_or_default() as u8);
    let mut bytes = [MAGIC, [VERSION, order, kind, N as u8]].concat();
    for field in [columns, start, end] {
        bytes.extend((field as u64).to_le_bytes());
    }
    for values in sums.values() {
        bytes.extend(values.iter().flat_map(|value| bytes_of(*value)));
    }
    bytes
}

/// The sums of as many values as `extent` asks for.
fn read<C: Compute, const N: usize>(extent: Extent, values: &[u8], of_bytes: fn([u8; N]) -> C) -> Sums<C> {
    let (mut rest, _) = values.as_chunks();
    Sums::of_values(extent, |len| {
        let (part, after) = rest.split_at(len);
        rest = after;
        part.iter().map(|bytes| of_bytes(*bytes)).collect()
    })
}
