//! The npy format: a magic, a version, and a Python dictionary of three entries, then the data.
//!
//! Parsed here because the libraries for it take a reader of their own, multiply the shape unchecked, and
//! quote the whole header in an error; a file's header is not to be trusted. Every length is checked.

use isonorm::DType;

/// Headers longer than this are refused; NumPy itself refuses to read them beyond 10 000 bytes.
const MOST_HEADER: usize = 65_536;
/// NumPy's own most dimensions.
pub(crate) const MOST_DIMS: usize = 64;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The type string, such as `<f4`.
    pub descr: String,
    /// Whether the first axis runs fastest.
    pub fortran: bool,
    /// The shape.
    pub shape: Vec<usize>,
    /// Where the data begins.
    pub offset: usize,
}

/// The bytes that must be there to know how long the header is.
pub const PREFIX: usize = 12;

/// How many bytes of the file the header takes, from its first [`PREFIX`] bytes.
pub fn header_len(start: &[u8]) -> Result<usize, String> {
    let Some(([b'\x93', b'N', b'U', b'M', b'P', b'Y', major, _], rest)) = start.split_first_chunk::<8>() else {
        return Err("it does not begin with npy's magic bytes".to_owned());
    };
    let (len, from) = match (major, rest) {
        (1, [a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        (2 | 3, [a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        (1..=3, _) => return Err("its header is cut off".to_owned()),
        _ => return Err(format!("it is of version {major}, expected 1, 2 or 3")),
    };
    if len > MOST_HEADER {
        return Err(format!("its header is {len} bytes long, expected at most {MOST_HEADER}"));
    }
    Ok(from + len)
}

/// Parses a header; `start` begins the file and holds at least the whole header.
pub fn parse(start: &[u8]) -> Result<Header, String> {
    let offset = header_len(start)?;
    let from = if start[6] == 1 { 10 } else { 12 };
    let text = start.get(from..offset).ok_or("its header is cut off")?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is not text")?;
    let mut parser = Parser { rest: text };
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    parser.expect('{')?;
    while !parser.take('}') {
        let key = parser.string()?;
        parser.expect(':')?;
        match key {
            "descr" => descr = Some(parser.descr()?),
            "fortran_order" => fortran = Some(parser.boolean()?),
            "shape" => shape = Some(parser.shape()?),
            _ => return Err(format!("its header has an unknown entry `{}`", shorten(key))),
        }
        if !parser.take(',') {
            parser.expect('}')?;
            break;
        }
    }
    if !parser.rest.trim_start().is_empty() {
        return Err("its header goes on after the closing brace".to_owned());
    }
    let missing = |name: &str| format!("its header has no `{name}`");
    Ok(Header {
        descr: descr.ok_or_else(|| missing("descr"))?,
        fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
        shape: shape.ok_or_else(|| missing("shape"))?,
        offset,
    })
}

/// The header of a C-ordered array, padded so that the data begins at a multiple of 64.
pub fn header(dtype: DType, shape: &[usize]) -> Vec<u8> {
    let descr = match dtype {
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::F16 => "<f2",
        DType::Bf16 => "<V2",
    };
    let lens: String = shape.iter().map(|len| format!("{len}, ")).collect();
    let lens = if shape.len() > 1 { lens.trim_end_matches(", ") } else { lens.trim_end() };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({lens}), }}");
    let unpadded = 10 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    let len = u16::try_from(text.len()).expect("64 dimensions of 20 digits fit");
    [b"\x93NUMPY\x01\x00".as_slice(), &len.to_le_bytes(), text.as_bytes()].concat()
}

/// What is left of a header's text.
struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn take(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.take(c) { Ok(()) } else { Err(format!("its header has `{}` where `{c}` belongs", self.next())) }
    }

    /// What comes next, shortened for a message.
    fn next(&self) -> &'a str {
        shorten(self.rest)
    }

    fn string(&mut self) -> Result<&'a str, String> {
        for quote in ['\'', '"'] {
            if self.take(quote) {
                let (string, rest) = self.rest.split_once(quote).ok_or("its header has an open quote")?;
                self.rest = rest;
                return Ok(string);
            }
        }
        Err(format!("its header has `{}` where a string belongs", self.next()))
    }

    fn descr(&mut self) -> Result<String, String> {
        if self.rest.trim_start().starts_with('[') {
            return Err("it is a structured array, expected an array of numbers".to_owned());
        }
        Ok(shorten(self.string()?).to_owned())
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(format!("its header has `{}` where True or False belongs", self.next()))
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect('(')?;
        let mut shape = Vec::new();
        while !self.take(')') {
            if shape.len() == MOST_DIMS {
                return Err(format!("its shape has more than {MOST_DIMS} dimensions"));
            }
            let digits = self.rest.trim_start().bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = self.rest.trim_start().split_at(digits);
            let len = number.parse().map_err(|_| format!("its shape has `{}`, expected a length", self.next()))?;
            shape.push(len);
            self.rest = rest.strip_prefix('L').unwrap_or(rest); // Python 2 wrote 3L
            if !self.take(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}

/// At most 16 characters of a text.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(16).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<u8> {
        [b"\x93NUMPY\x01\x00".as_slice(), &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
    }

    #[test]
    fn a_written_header_reads_back() {
        for shape in [vec![], vec![3], vec![0, 2], vec![1, 2, 3], vec![usize::MAX; MOST_DIMS]] {
            let bytes = header(DType::F64, &shape);
            assert_eq!(bytes.len() % 64, 0);
            let expected = Header { descr: "<f8".to_owned(), fortran: false, shape, offset: bytes.len() };
            assert_eq!(parse(&bytes), Ok(expected));
        }
    }

    #[test]
    fn what_numpy_and_others_write_is_understood() {
        let parsed = parse(&file("{\"shape\":(2,3L),\"fortran_order\":True,\"descr\":\"<f4\"}  \n")).expect("valid");
        assert_eq!((parsed.shape, parsed.fortran, parsed.descr.as_str()), (vec![2, 3], true, "<f4"));
        assert!(parse(&file("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }")).is_err());
    }

    #[test]
    fn broken_headers_are_refused_in_one_line() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }";
        for bad in [
            "",
            "{",
            "{'",
            "{'descr'",
            "{'descr': ",
            "{}",
            "{'shape': (3,)}",
            &good.replace("(3,)", "(-3,)"),
            &good.replace("(3,)", "(99999999999999999999,)"),
            &good.replace("(3,)", "(3"),
            &good.replace("False", "Maybe"),
            &good.replace("shape", "shepe"),
            &format!("{good} x"),
            &good.replace("(3,)", &"(".repeat(9000)),
        ] {
            let message = parse(&file(bad)).expect_err(bad);
            assert!(!message.contains('\n') && message.len() < 120, "{message}");
        }
        assert!(parse(b"").is_err() && parse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").is_err());
    }
}
