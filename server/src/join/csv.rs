//! The CSV dialect of K3s' password files: comma, double quotes where needed, one row a line (Go's `encoding/csv`).

/// Reads rows; blank lines are passed over. `None` when a quote is not closed.
pub fn read(text: &str) -> Option<Vec<Vec<String>>> {
    let mut rows = Vec::new();
    let mut row = Vec::new();
    let mut field = String::new();
    let (mut quoted, mut started) = (false, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (quoted, character) {
            (true, '"') if characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            (true, '"') => quoted = false,
            (true, other) => field.push(other),
            (false, '"') if field.is_empty() => (quoted, started) = (true, true),
            (false, ',') => {
                row.push(std::mem::take(&mut field));
                started = true;
            }
            (false, '\r') if characters.peek() == Some(&'\n') => {}
            (false, '\n') => end_row(&mut rows, &mut row, &mut field, &mut started),
            (false, other) => {
                field.push(other);
                started = true;
            }
        }
    }
    end_row(&mut rows, &mut row, &mut field, &mut started);
    (!quoted).then_some(rows)
}

/// Writes rows.
pub fn write<'a>(rows: impl IntoIterator<Item = &'a [String]>) -> String {
    let mut text = String::new();
    for row in rows {
        let fields: Vec<String> = row.iter().map(|field| quote(field)).collect();
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

fn end_row(rows: &mut Vec<Vec<String>>, row: &mut Vec<String>, field: &mut String, started: &mut bool) {
    if *started {
        row.push(std::mem::take(field));
        rows.push(std::mem::take(row));
    }
    *started = false;
}

fn quote(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) || field.starts_with([' ', '\t']) || field == "\\." {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_of_k3s_are_read() {
        let text = "secret,node,node,k3s:agent\r\n\n\"a,\"\"b\"\"\",server,server,k3s:server\nlast,x";
        let rows: Vec<Vec<&str>> = vec![
            vec!["secret", "node", "node", "k3s:agent"],
            vec!["a,\"b\"", "server", "server", "k3s:server"],
            vec!["last", "x"],
        ];
        assert_eq!(read(text).unwrap(), rows);
        assert_eq!(read("\"open"), None);
        assert_eq!(read(""), Some(vec![]));
        assert_eq!(
            read("a,,\n"),
            Some(vec![vec!["a".to_owned(), String::new(), String::new()]])
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(rows in prop::collection::vec(prop::collection::vec("[ -~\n]{0,12}", 2..5), 0..6)) {
            let text = write(rows.iter().map(Vec::as_slice));
            prop_assert_eq!(read(&text), Some(rows));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = read(&text);
        }
    }
}
