//! Tables as kubectl prints them: columns of equal width, three spaces between.

/// The text of a table.
pub fn text<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows);
    let mut widths = [0; N];
    for row in all() {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_stand_under_each_other() {
        let rows = [["abcdef", ""], ["x", "long words"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            super::text(["ID", "DESCRIPTION"], &rows),
            "ID       DESCRIPTION\nabcdef\nx        long words\n"
        );
    }
}
