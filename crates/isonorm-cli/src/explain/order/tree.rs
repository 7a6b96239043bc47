//! A binary tree drawn sideways, leaves on the left.

/// Draws levels of labels: level 0 the leaves, each further level the sums of neighbours.
pub(crate) fn draw(levels: &[Vec<String>]) -> Vec<String> {
    let Some(leaves) = levels.first() else { return Vec::new() };
    let mut canvas = Canvas::default();
    let mut lines: Vec<usize> = (0..leaves.len()).map(|i| 2 * i).collect();
    for (label, &line) in leaves.iter().zip(&lines) {
        canvas.write(line, 0, label);
    }
    for labels in &levels[1..] {
        let column = canvas.width() + 1;
        let mut next = Vec::new();
        for (node, pair) in lines.chunks(2).enumerate() {
            for &line in pair {
                canvas.reach(line, column);
            }
            match pair {
                [top, bottom] => {
                    let middle = (top + bottom) / 2;
                    canvas.bracket(*top, middle, *bottom, column);
                    canvas.write(middle, column + 3, &labels[node]);
                    next.push(middle);
                }
                // It passes through: its line goes on.
                alone => next.push(alone[0]),
            }
        }
        lines = next;
    }
    canvas.lines()
}

/// Characters in lines.
#[derive(Default)]
struct Canvas {
    cells: Vec<Vec<char>>,
}

impl Canvas {
    fn write(&mut self, line: usize, column: usize, text: &str) {
        if self.cells.len() <= line {
            self.cells.resize(line + 1, Vec::new());
        }
        let cells = &mut self.cells[line];
        let end = column + text.chars().count();
        if cells.len() < end {
            cells.resize(end, ' ');
        }
        for (cell, c) in cells[column..].iter_mut().zip(text.chars()) {
            *cell = c;
        }
    }

    fn width(&self) -> usize {
        self.cells.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Draws a line from the end of what stands on `line` to `column`.
    fn reach(&mut self, line: usize, column: usize) {
        let cells = &self.cells[line];
        let from = cells.len() + usize::from(cells.last() != Some(&'─'));
        if column > from {
            self.write(line, from, &"─".repeat(column - from));
        }
    }

    fn bracket(&mut self, top: usize, middle: usize, bottom: usize, column: usize) {
        for line in top..=bottom {
            self.write(line, column, "│");
        }
        self.write(top, column, "┐");
        self.write(bottom, column, "┘");
        self.write(middle, column, "├─");
    }

    fn lines(self) -> Vec<String> {
        self.cells.into_iter().map(|cells| cells.into_iter().collect::<String>().trim_end().to_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_leaves_make_a_tree_whose_odd_leaf_passes_through() {
        let labels = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let drawn = draw(&[labels(&["a", "b", "c"]), labels(&["a+b", "c"]), labels(&["sum"])]);
        let expected = "\
a ┐
  ├─ a+b ┐
b ┘      ├─ sum
         │
c ───────┘";
        assert_eq!(drawn.join("\n"), expected);
    }
}
