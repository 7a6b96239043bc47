//! A formula, written once as `rstd = \frac{1}{\sqrt{var + eps}}`, for a line of text and for a page.
//!
//! Five marks and no more: `\frac{above}{below}`, `\sqrt{of}`, `_{index}`, `^{power}` and `\text{words}`.

/// One piece of a formula.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Math {
    Text(String),
    /// Prose between formulae.
    Words(String),
    Fraction(Vec<Math>, Vec<Math>),
    Root(Vec<Math>),
    Index(Vec<Math>),
    Power(Vec<Math>),
}

/// The pieces of a formula. What is no mark is text.
pub(crate) fn parse(source: &str) -> Vec<Math> {
    let mut rest = source;
    let mut pieces = Vec::new();
    let mut text = String::new();
    while let Some(first) = rest.chars().next() {
        let piece = if let Some(after) = rest.strip_prefix("\\frac{") {
            let (above, after) = braced(after);
            let (below, after) = braced(after.strip_prefix('{').unwrap_or(after));
            Some((Math::Fraction(parse(above), parse(below)), after))
        } else if let Some(after) = rest.strip_prefix("\\sqrt{") {
            let (of, after) = braced(after);
            Some((Math::Root(parse(of)), after))
        } else if let Some(after) = rest.strip_prefix("\\text{") {
            let (words, after) = braced(after);
            Some((Math::Words(words.to_owned()), after))
        } else if let Some(after) = rest.strip_prefix("_{") {
            let (index, after) = braced(after);
            Some((Math::Index(parse(index)), after))
        } else if let Some(after) = rest.strip_prefix("^{") {
            let (power, after) = braced(after);
            Some((Math::Power(parse(power)), after))
        } else {
            None
        };
        if let Some((piece, after)) = piece {
            if !text.is_empty() {
                pieces.push(Math::Text(std::mem::take(&mut text)));
            }
            pieces.push(piece);
            rest = after;
        } else {
            text.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    if !text.is_empty() {
        pieces.push(Math::Text(text));
    }
    pieces
}

/// What stands before the brace that closes, and what stands after it.
fn braced(source: &str) -> (&str, &str) {
    let mut depth = 1;
    for (at, c) in source.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (&source[..at], &source[at + 1..]);
        }
    }
    (source, "")
}

/// The formula on one line: `rstd = 1 / sqrt(var + eps)`.
pub(crate) fn line(formula: &[Math]) -> String {
    formula
        .iter()
        .map(|piece| match piece {
            Math::Text(text) | Math::Words(text) => text.clone(),
            Math::Fraction(above, below) => format!("{} / {}", operand(above), operand(below)),
            Math::Root(of) => format!("sqrt({})", line(of)),
            Math::Index(index) => format!("_{}", line(index)),
            Math::Power(power) if line(power) == "2" => "²".to_owned(),
            Math::Power(power) => format!("^{}", line(power)),
        })
        .collect()
}

/// One side of a division, in parentheses where it is more than one term.
fn operand(side: &[Math]) -> String {
    let text = line(side);
    let alone = matches!(side, [Math::Root(_)]) || !text.contains(' ');
    if alone { text } else { format!("({text})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_formula_becomes_a_line() {
        for (source, expected) in [
            (r"rstd = \frac{1}{\sqrt{var + eps}}", "rstd = 1 / sqrt(var + eps)"),
            (r"mean = \frac{x_{1} + … + x_{n}}{n}", "mean = (x_1 + … + x_n) / n"),
            (r"y = \frac{x - mean}{\sqrt{var} + eps} · weight", "y = (x - mean) / (sqrt(var) + eps) · weight"),
            (r"x_hat = (-1)^{2} + 2^{-3}", "x_hat = (-1)² + 2^-3"),
            (r"\text{RMSNorm: }y = \frac{x}{2}", "RMSNorm: y = x / 2"),
            ("no marks", "no marks"),
        ] {
            assert_eq!(line(&parse(source)), expected);
        }
    }

    #[test]
    fn an_unclosed_mark_is_no_panic() {
        assert_eq!(line(&parse(r"\frac{1}{2")), "1 / 2");
        assert_eq!(line(&parse(r"\sqrt{")), "sqrt()");
    }
}
