//! What people see of each kind in `kubectl get`: columns and cells. Pure.
//!
//! The frame of a Table (metadata, the object each row carries) is `http::table`'s. The first column is always the name.

mod cell;
mod cluster;
mod event;
mod network;
mod node;
mod pod;
mod storage;
mod workload;

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

/// A column with the way to fill it from an object.
struct Shown {
    name: &'static str,
    kind: &'static str,
    wide: bool,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
}

impl Shown {
    const fn text(name: &'static str, description: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self {
            name,
            kind: "string",
            wide: false,
            description,
            cell,
        }
    }

    const fn number(name: &'static str, description: &'static str, cell: fn(&Value, Timestamp) -> Value) -> Self {
        Self {
            kind: "integer",
            ..Self::text(name, description, cell)
        }
    }

    const fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    fn column(&self) -> Column {
        let column = Column {
            kind: Cow::Borrowed(self.kind),
            ..Column::new(self.name, self.kind, self.description)
        };
        match (self.name, self.wide) {
            ("Name", false) => Column::name(),
            (_, true) => column.wide(),
            (_, false) => column,
        }
    }
}

const NAME: Shown = Shown::text("Name", "", |object, _| cell::text(object, &["metadata", "name"]));
const AGE: Shown = Shown::text("Age", "Time since the object was created", |object, now| {
    age(object, now).into()
});
const CREATED_AT: Shown = Shown {
    kind: "date",
    ..Shown::text("Created At", "When the object was created", |object, _| {
        cell::text(object, &["metadata", "creationTimestamp"])
    })
};

/// The table of some objects of one resource.
///
/// Source: Kubernetes v1.36 `pkg/printers/internalversion/printers.go` for which columns a kind has and their texts.
pub fn table(resource: &Resource, objects: &[Value], now: Timestamp) -> Table {
    let columns = columns(resource.group, resource.plural);
    let row = |object: &Value| {
        let stored = resource.view.map(|view| {
            let mut object = object.clone();
            (view.store)(&mut object);
            object
        });
        let object = stored.as_ref().unwrap_or(object);
        columns.iter().map(|column| (column.cell)(object, now)).collect()
    };
    Table {
        columns: columns.iter().map(Shown::column).collect(),
        rows: objects.iter().map(row).collect(),
    }
}

fn columns(group: &str, plural: &str) -> &'static [Shown] {
    const PLAIN: &[Shown] = &[NAME, AGE];
    [
        pod::columns,
        workload::columns,
        node::columns,
        network::columns,
        storage::columns,
        cluster::columns,
        event::columns,
    ]
    .iter()
    .find_map(|kinds| kinds(group, plural))
    .unwrap_or(PLAIN)
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
        let row = kinds::find("networking.k8s.io", "v1", "servicecidrs").unwrap();
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

    #[test]
    fn every_kind_fills_every_column_even_of_an_empty_object() {
        for row in kinds::table() {
            let table = table(
                row,
                &[json!({}), json!({"spec": 1, "status": [], "metadata": null})],
                Timestamp::UNIX_EPOCH,
            );
            assert!(table.columns.len() >= 2, "{}", row.plural);
            assert!(
                table.rows.iter().all(|cells| cells.len() == table.columns.len()),
                "{}",
                row.plural
            );
        }
    }
}
