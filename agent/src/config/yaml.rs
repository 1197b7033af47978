//! The part of YAML that a configuration file of flags needs, read strictly.
//!
//! A mapping of flags to scalars or lists of scalars, with comments and quotes; nothing nested, no anchors, no blocks of
//! text. What is not understood is refused with its line and a cure, never guessed: a guess would be a flag nobody set.
//! A plain scalar keeps its text (`0644` stays `0644`, `on` stays `on`); `~`, `null` and nothing are nothing. Why this and
//! not a library: docs/decisions/0004-configuration-file.md.

use std::fmt;

/// A key and what stands behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// As written, with its `+`.
    pub key: String,
    /// Empty for nothing, one text for a scalar.
    pub values: Vec<String>,
}

/// What cannot be read, and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong and what is wanted.
    pub why: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

const WANTED: &str = "wanted \"flag: value\", such as \"debug: true\", or a list item \"- value\" below \"flag:\"";
const NESTED: &str = "a value is a text or a list of texts, and nothing deeper; put it in quotes if it is a text";
const SPECIAL: &str = "a text that begins with one of & * ! | > % @ ` { } [ ] , ? has to stand in quotes";
const COLON: &str = "a text that holds \": \" or ends with \":\" has to stand in quotes";
const UNCLOSED: &str = "a quote or bracket is not closed on its line";
const AFTER: &str = "there is something behind the value; put the whole value in quotes, or \" #\" before a comment";
const ESCAPE: &str = "an unknown escape in double quotes; single quotes take every letter as it is";
const TAB: &str = "a tab in the indentation; use spaces";
const INDENT: &str = "the keys of this file do not begin in the same column";

/// Reads a document.
///
/// # Errors
/// [`Fault`].
pub fn read(text: &str) -> Result<Vec<Entry>, Fault> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut column = None;
    // Of the list that goes on below its key; `None` behind a key that has its value.
    let mut open: Option<Option<usize>> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in text.lines().enumerate() {
        let fault = |why| Fault { line: at + 1, why };
        let rest = line.trim_start_matches(' ');
        let indent = line.len() - rest.len();
        if rest.trim_start().is_empty() || rest.trim_start().starts_with('#') {
            continue;
        }
        if rest.starts_with('\t') {
            return Err(fault(TAB));
        }
        if entries.is_empty() && indent == 0 && rest.trim_end() == "---" {
            continue;
        }
        if let Some(item) = rest
            .strip_prefix('-')
            .filter(|item| item.is_empty() || item.starts_with([' ', '\t']))
        {
            let (Some(list), Some(entry)) = (open.as_mut(), entries.last_mut()) else {
                return Err(fault(WANTED));
            };
            if *list.get_or_insert(indent) != indent || column.is_some_and(|column| indent < column) {
                return Err(fault(INDENT));
            }
            entry.values.extend(scalar(item.trim()).map_err(fault)?);
            continue;
        }
        if *column.get_or_insert(indent) != indent {
            return Err(fault(if open.is_some() { NESTED } else { INDENT }));
        }
        let (key, value) = key(rest).map_err(fault)?;
        let value = value.trim();
        open = (value.is_empty() || value.starts_with('#')).then_some(None);
        entries.push(Entry {
            key,
            values: values(value).map_err(fault)?,
        });
    }
    Ok(entries)
}

/// The key of a line and what follows its colon.
fn key(line: &str) -> Result<(String, &str), &'static str> {
    if line.starts_with(['"', '\'']) {
        let (key, rest) = quoted(line)?;
        let rest = rest.trim_start().strip_prefix(':').ok_or(WANTED)?;
        return Ok((key, rest));
    }
    if line.starts_with(SPECIALS) {
        return Err(WANTED);
    }
    let end = line.match_indices(':').find(|(at, _)| ends_here(line, at + 1));
    let (end, _) = end.ok_or(WANTED)?;
    let (key, rest) = (
        line.get(..end).unwrap_or_default(),
        line.get(end + 1..).unwrap_or_default(),
    );
    match key.trim_end() {
        key if key.is_empty() || key.contains(" #") => Err(WANTED),
        key => Ok((key.to_owned(), rest)),
    }
}

/// What stands behind a key: nothing, a scalar, or a list in brackets.
fn values(text: &str) -> Result<Vec<String>, &'static str> {
    let Some(mut rest) = text.strip_prefix('[') else {
        return Ok(scalar(text)?.into_iter().collect());
    };
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix(']') {
            return only_comment(after).map(|()| all);
        }
        let (item, after) = match rest.starts_with(['"', '\'']) {
            true => {
                let (item, after) = quoted(rest)?;
                (Some(item), after)
            }
            false => {
                let end = rest.find([',', ']']).ok_or(UNCLOSED)?;
                let (item, after) = rest.split_at(end);
                if item.trim().is_empty() {
                    return Err(WANTED);
                }
                (plain(item.trim())?, after)
            }
        };
        all.extend(item);
        rest = after.trim_start();
        match (rest.strip_prefix(','), rest.starts_with(']')) {
            (Some(after), _) => rest = after,
            (None, true) => {}
            (None, false) => return Err(UNCLOSED),
        }
    }
}

/// One text, with or without quotes; a comment may follow.
fn scalar(text: &str) -> Result<Option<String>, &'static str> {
    if text.starts_with(['"', '\'']) {
        let (value, after) = quoted(text)?;
        return only_comment(after).map(|()| Some(value));
    }
    if text.starts_with('#') {
        return Ok(None);
    }
    let comment = text
        .match_indices('#')
        .find(|(at, _)| text.get(..*at).is_some_and(|before| before.ends_with([' ', '\t'])));
    let text = comment.and_then(|(at, _)| text.get(..at)).unwrap_or(text);
    plain(text.trim_end())
}

/// What begins something that we do not read, or that YAML keeps for itself.
const SPECIALS: &[char] = &['&', '*', '!', '|', '>', '%', '@', '`', '{', '}', '[', ']', ',', '?'];

/// A text without quotes; `None` for YAML's words for nothing.
fn plain(text: &str) -> Result<Option<String>, &'static str> {
    if text.starts_with(SPECIALS) {
        return Err(SPECIAL);
    }
    if text == "-" || text.starts_with("- ") {
        return Err(NESTED);
    }
    if text.match_indices(':').any(|(at, _)| ends_here(text, at + 1)) {
        return Err(COLON);
    }
    let nothing = matches!(text, "" | "~" | "null" | "Null" | "NULL");
    Ok((!nothing).then(|| text.to_owned()))
}

/// Whether a blank or the end follows.
fn ends_here(text: &str, at: usize) -> bool {
    text.get(at..)
        .is_none_or(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
}

fn only_comment(after: &str) -> Result<(), &'static str> {
    let comment = after.trim_start();
    match comment.is_empty() || (comment.starts_with('#') && comment.len() < after.len()) {
        true => Ok(()),
        false => Err(AFTER),
    }
}

/// Takes a text in quotes off the beginning.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut letters = text.char_indices();
    let quote = letters.next().map(|(_, quote)| quote);
    let mut value = String::new();
    while let Some((at, letter)) = letters.next() {
        let rest = text.get(at + letter.len_utf8()..).unwrap_or_default();
        match letter {
            // In single quotes, two stand for one.
            '\'' if quote == Some('\'') && rest.starts_with('\'') => {
                value.push('\'');
                letters.next();
            }
            _ if Some(letter) == quote => return Ok((value, rest)),
            '\\' if quote == Some('"') => {
                value.push(match letters.next().map(|(_, escaped)| escaped) {
                    Some(same @ ('"' | '\\' | '/' | ' ')) => same,
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some('0') => '\0',
                    _ => return Err(ESCAPE),
                });
            }
            other => value.push(other),
        }
    }
    Err(UNCLOSED)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(text: &str) -> Vec<(String, Vec<String>)> {
        let read = read(text).unwrap_or_else(|fault| panic!("{text:?}: {fault}"));
        read.into_iter().map(|entry| (entry.key, entry.values)).collect()
    }

    #[test]
    fn flags_have_texts_or_lists_of_texts() {
        let text = "---\n# settings\nserver: https://10.0.0.1:6443   # the first\n\ntoken: \"K10a::server:b # c\"\n\
                    write-kubeconfig-mode: 0644\ndebug: true\nnode-taint:\n  - k=v:NoSchedule\n  # and\n\n  - 'it''s'  # odd\n\
                    tls-san+: [a, \"b, c\", 'd' ,e]\nnode-label:\n- x=y\n- \nkubelet-arg: []\nnothing:\nempty: ''\ntilde: ~\n\
                    \"quoted\": \"tab\\tquote\\\"\"\nd: a#b\n";
        let expected: &[(&str, &[&str])] = &[
            ("server", &["https://10.0.0.1:6443"]),
            ("token", &["K10a::server:b # c"]),
            ("write-kubeconfig-mode", &["0644"]),
            ("debug", &["true"]),
            ("node-taint", &["k=v:NoSchedule", "it's"]),
            ("tls-san+", &["a", "b, c", "d", "e"]),
            ("node-label", &["x=y"]),
            ("kubelet-arg", &[]),
            ("nothing", &[]),
            ("empty", &[""]),
            ("tilde", &[]),
            ("quoted", &["tab\tquote\""]),
            ("d", &["a#b"]),
        ];
        let read = entries(text);
        let read: Vec<(&str, Vec<&str>)> = read
            .iter()
            .map(|(key, values)| (key.as_str(), values.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(&str, Vec<&str>)> = expected.iter().map(|(key, values)| (*key, values.to_vec())).collect();
        assert_eq!(read, expected);
        for text in ["", "\n", "---\n", "# only words\n", "\u{feff}---"] {
            assert_eq!(entries(text), [], "{text:?}");
        }
        assert_eq!(
            entries("  a: b\n  c:\n  - d\r\n").len(),
            2,
            "a whole file may be indented"
        );
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line_and_a_cure() {
        for (text, line, why) in [
            ("just words", 1, WANTED),
            ("a: b\n- c", 2, WANTED),
            ("- a", 1, WANTED),
            ("{a: b}", 1, WANTED),
            (": b", 1, WANTED),
            ("a: [b,,c]", 1, WANTED),
            ("a:\n  b: c", 2, NESTED),
            ("a:\n  - - b", 2, NESTED),
            ("a:\n  - b: c", 2, COLON),
            ("a: b: c", 1, COLON),
            ("a: b:", 1, COLON),
            ("a: {b: c}", 1, SPECIAL),
            ("a: *b", 1, SPECIAL),
            ("a: |\n  b", 1, SPECIAL),
            ("a: [[b]]", 1, SPECIAL),
            ("a: [b", 1, UNCLOSED),
            ("a: [\"b\" c]", 1, UNCLOSED),
            ("a: \"b", 1, UNCLOSED),
            ("a: 'b' c", 1, AFTER),
            ("a: 'b'# c", 1, AFTER),
            ("a: [b] c", 1, AFTER),
            ("a: \"\\x41\"", 1, ESCAPE),
            ("a: b\n\tc: d", 2, TAB),
            ("a: b\n  c", 2, INDENT),
            ("a: b\n c: d", 2, INDENT),
            ("a:\n  - b\n - c", 3, INDENT),
            ("a: b\n---\nc: d", 2, WANTED),
        ] {
            assert_eq!(read(text), Err(Fault { line, why }), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a\\-:#'\"\\[\\],&\\\\ \t\n]{0,40}") {
            let _ = read(&text);
        }

        #[test]
        fn a_quoted_text_comes_back_as_it_was(text in "[^\\r\\n]{0,30}") {
            let single = format!("k: '{}' # c", text.replace('\'', "''"));
            prop_assert_eq!(entries(&single), [("k".to_owned(), vec![text.clone()])]);
            let double = format!("k: [\"{}\"]", text.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(entries(&double), [("k".to_owned(), vec![text])]);
        }
    }
}
