//! What people see of each kind in `kubectl get`: columns and cells. Pure.
//!
//! The frame of a Table (metadata, the object each row carries) is `http::table`'s. The first column is always the name.

use std::borrow::Cow;

use agent::wire::object::text;
use agent::wire::time;
use jiff::Timestamp;
use serde_json::Value;

use crate::registry::resource::Resource;

/// One column.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Column {
    /// `Name`: kubectl prints it in capitals.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Cow<'static, str>,
    /// `name` for the first column, else empty.
    pub format: Cow<'static, str>,
    /// For people.
    pub description: Cow<'static, str>,
    /// 0: always shown; above: only with `-o wide`.
    pub priority: u32,
}

/// Columns, and a row of cells for each object in the order given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What there is.
    pub columns: Vec<Column>,
    /// As many cells as columns each; a cell may be null.
    pub rows: Vec<Vec<Value>>,
}

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            kind: Cow::Borrowed(kind),
            format: Cow::Borrowed(""),
            description: Cow::Borrowed(description),
            priority: 0,
        }
    }

    /// The first column.
    pub fn name() -> Self {
        Self {
            format: Cow::Borrowed("name"),
            ..Self::new("Name", "string", "Unique among the objects of its kind and namespace")
        }
    }

    /// Shown with `-o wide` only.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// The table of some objects of one resource.
pub fn table(_resource: &Resource, objects: &[Value], now: Timestamp) -> Table {
    let age_column = Column::new("Age", "string", "Time since the object was created");
    let row = |object: &Value| vec![text(object, &["metadata", "name"]).into(), age(object, now).into()];
    Table {
        columns: vec![Column::name(), age_column],
        rows: objects.iter().map(row).collect(),
    }
}

/// Time since creation, as kubectl prints it.
pub fn age(object: &Value, now: Timestamp) -> String {
    since(text(object, &["metadata", "creationTimestamp"]), now)
}

/// Time since an instant, as kubectl prints it; `<unknown>` without one.
pub fn since(instant: &str, now: Timestamp) -> String {
    let at = time::parse(instant);
    at.map_or_else(
        || "<unknown>".to_owned(),
        |at| time::age(now.as_second().saturating_sub(at.as_second())),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    #[test]
    fn a_kind_without_columns_of_its_own_shows_name_and_age() {
        let row = kinds::find("coordination.k8s.io", "v1", "leases").unwrap();
        let objects = [
            json!({"metadata": {"name": "a", "creationTimestamp": "1970-01-01T00:00:10Z"}}),
            json!({"metadata": {"name": "b"}}),
        ];
        let table = table(&row, &objects, Timestamp::from_second(55).unwrap());
        assert_eq!(table.columns.first().map(|column| &*column.name), Some("Name"));
        assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        assert_eq!(age(&objects[0], Timestamp::from_second(55).unwrap()), "45s");
        assert_eq!(age(&objects[1], Timestamp::from_second(55).unwrap()), "<unknown>");
    }
}
