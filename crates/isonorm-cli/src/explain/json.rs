//! Numbers written on the command line: JSON lists, checked with a remedy for every mistake.

use serde_json::Value;

use crate::error::{Error, Result};

const EXAMPLE: &str = "give numbers in brackets, such as '[[1,2,3],[4,5,6]]'";
/// Lists in lists in lists: samples, channels, positions.
const DEEPEST: usize = 3;

/// Numbers in lists of equal lengths.
#[derive(Debug, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

/// Reads `text`, the value of the option `name`.
pub(crate) fn parse(name: &str, text: &str) -> Result<Numbers> {
    let value: Value = serde_json::from_str(text).map_err(|reason| match text.trim() {
        "" => Error::usage(format!("{name} is empty"), EXAMPLE),
        _ => Error::usage(format!("{name} is not JSON ({reason})"), EXAMPLE),
    })?;
    if !value.is_array() {
        return Err(Error::usage(format!("{name} is {}, expected a list", described(&value)), EXAMPLE));
    }
    let mut numbers = Numbers { shape: shape_of(&value), values: Vec::new() };
    if numbers.shape.len() > DEEPEST {
        let found = format!("{name} has lists {} deep, expected 1 to {DEEPEST}", numbers.shape.len());
        return Err(Error::usage(found, "put deeper data in a .npy or .safetensors file and name it as X"));
    }
    collect(name, &value, &numbers.shape, &mut Vec::new(), &mut numbers.values)?;
    Ok(numbers)
}

/// The lengths along the first element of each list.
fn shape_of(value: &Value) -> Vec<usize> {
    let mut shape = Vec::new();
    let mut value = Some(value);
    while let Some(Value::Array(list)) = value {
        shape.push(list.len());
        value = list.first();
    }
    shape
}

fn collect(name: &str, value: &Value, shape: &[usize], at: &mut Vec<usize>, values: &mut Vec<f64>) -> Result<()> {
    match (value, shape) {
        (Value::Array(list), []) => {
            let found = format!("{name}{} is a list of {}, expected a number as before it", place(at), list.len());
            Err(Error::usage(found, "nest all lists equally deep"))
        }
        (Value::Array(list), _) if list.is_empty() => {
            Err(Error::usage(format!("{name}{} is an empty list, expected numbers", place(at)), EXAMPLE))
        }
        (Value::Array(list), [len, ..]) if list.len() != *len => {
            let (here, found) = (place(at), list.len());
            let found = format!("{name} is ragged: {name}{here} has length {found}, the list before it {len}");
            Err(Error::usage(found, "give every row the same length"))
        }
        (Value::Array(list), [_, inner @ ..]) => {
            for (i, value) in list.iter().enumerate() {
                at.push(i);
                collect(name, value, inner, at, values)?;
                at.pop();
            }
            Ok(())
        }
        (Value::Number(number), []) => {
            values.extend(number.as_f64());
            Ok(())
        }
        (other, []) => {
            let found = format!("{name}{} is {}, expected a number", place(at), described(other));
            Err(Error::usage(found, "only numbers can be normalized"))
        }
        (other, _) => {
            let found = format!("{name}{} is {}, expected a list as before it", place(at), described(other));
            Err(Error::usage(found, "nest all lists equally deep"))
        }
    }
}

/// `[0][2]`
fn place(at: &[usize]) -> String {
    at.iter().map(|i| format!("[{i}]")).collect()
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string \"{}\"", s.chars().take(40).collect::<String>()),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_one_to_three_dimensions_are_read() {
        for (text, shape) in
            [("[1, 2.5, -3e2]", vec![3]), ("[[1],[2]]", vec![2, 1]), ("[[[1,2]],[[3,4]]]", vec![2, 1, 2])]
        {
            assert_eq!(parse("--data", text).expect(text).shape, shape);
        }
        assert_eq!(parse("--data", "[1, 2.5, -3e2]").expect("a list").values, [1.0, 2.5, -300.0]);
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        for (text, expected) in [
            ("", "--data is empty"),
            ("[[1,2],[3,4]", "--data is not JSON"),
            ("5", "--data is the number 5, expected a list"),
            ("[]", "--data is an empty list"),
            ("[[1,2],[]]", "--data[1] is an empty list"),
            ("[[1,2,3],[4,5]]", "--data is ragged: --data[1] has length 2, the list before it 3"),
            ("[[1,2],3]", "--data[1] is the number 3, expected a list as before it"),
            ("[1,[2]]", "--data[1] is a list of 1, expected a number as before it"),
            ("[[1,\"a\"]]", "--data[0][1] is the string \"a\", expected a number"),
            ("[1,null]", "--data[1] is null, expected a number"),
            ("[[[[1]]]]", "--data has lists 4 deep"),
            ("[1e999]", "--data is not JSON"),
        ] {
            let error = parse("--data", text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
