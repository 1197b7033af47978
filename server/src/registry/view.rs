//! Rows that are another row's objects in another group or version: in comes their form, out goes their form, and all
//! between is done to what is stored, as for the other row.
//!
//! Only who asks for such a row pays for it: the bytes of other rows are passed on as they are.

use std::sync::Arc;

use agent::units::Revision;
use agent::wire::object::{at, remove, set, text};
use agent::wire::status::{Reason, Status};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::cache::{Filter, Item};
use crate::request::{Answer, ListOptions, Operation};
use crate::schema;

use super::resource::{FieldError, Resource};
use super::{Context, stored};

impl Context<'_> {
    /// All faults of the object as stored: those of the kind, and those of the form that was asked for.
    pub(super) fn check(&self, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut faults = self.row.rules.check(new, old);
        if let Some(view) = self.asked.view {
            faults.extend((view.check)(new, old));
        }
        faults
    }

    /// The operation with its field selector in the words of the stored row.
    pub(super) fn stored_operation(&self, operation: Operation) -> Result<Operation, Status> {
        if self.asked.view.is_none() {
            return Ok(operation);
        }
        let list = |list: ListOptions| {
            Ok::<_, Status>(ListOptions {
                filter: self.stored_filter(list.filter)?,
                ..list
            })
        };
        Ok(match operation {
            Operation::List(options) => Operation::List(list(options)?),
            Operation::DeleteCollection { list: which, options } => Operation::DeleteCollection {
                list: list(which)?,
                options,
            },
            Operation::Watch {
                filter,
                from,
                bookmarks,
            } => Operation::Watch {
                filter: self.stored_filter(filter)?,
                from,
                bookmarks,
            },
            Operation::Get { .. }
            | Operation::Create { .. }
            | Operation::Update { .. }
            | Operation::Patch { .. }
            | Operation::Delete(_) => operation,
        })
    }

    fn stored_filter(&self, filter: Filter) -> Result<Filter, Status> {
        let names = self.asked.view.map_or(&[][..], |view| view.selectors);
        let of_all = ["metadata.name", "metadata.namespace"];
        let named = |path: &str| {
            let mut all = of_all.iter().map(|name| (*name, *name)).chain(names.iter().copied());
            all.find_map(|(here, there)| (here == path).then_some(there))
        };
        let fields = filter.fields.renamed(named).map_err(|path| {
            let text = format!("field label not supported: {path}");
            Status::failure(Reason::BadRequest, text)
        })?;
        Ok(Filter { fields, ..filter })
    }
}

/// From the form that was asked for to the stored one.
///
/// `object` has the types of the form that was asked for. What it carries along in an annotation may have others than the
/// fields that it is for: such an annotation is left out as a whole, as Kubernetes does it.
pub(super) fn to_stored(object: &mut Value, asked: &Resource, row: &Resource) {
    let Some(view) = asked.view else { return };
    let shape = schema::built_in().kind(row.group, row.version, row.kind);
    for note in view.notes {
        let path = ["metadata", "annotations", note];
        let Some(words) = at(object, &path) else { continue };
        let mut alone = json!({"metadata": {"annotations": {*note: words}}});
        (view.store)(&mut alone);
        if shape.is_some_and(|shape| !shape.check(&mut alone).mistyped.is_empty()) {
            remove(object, &path);
        }
    }
    (view.store)(object);
    label(object, row);
    if let Some(shape) = shape {
        shape.check(object); // nothing is mistyped any more: it is for unknown members of what was in the notes
        shape.fill_defaults(object);
        shape.normalise(object);
    }
}

/// From the stored form to the one that was asked for; what is of another kind, such as a scale, stays.
pub(super) fn to_asked(object: &mut Value, asked: &Resource, row: &Resource) {
    let Some(view) = asked.view else { return };
    if text(object, &["kind"]) == row.kind && text(object, &["apiVersion"]) == row.api_version() {
        (view.show)(object);
        label(object, asked);
    }
}

fn label(object: &mut Value, row: &Resource) {
    set(object, &["apiVersion"], row.api_version());
    set(object, &["kind"], row.kind);
}

/// The answer in the form that was asked for. `stored`: the row it is stored by, if that is another one.
pub(super) fn shown_answer(answer: Answer, asked: &Arc<Resource>, stored: Option<&Arc<Resource>>) -> Answer {
    let Some(row) = stored else { return answer };
    match answer {
        Answer::Object { code, body, warnings } => Answer::Object {
            code,
            body: shown(&body, asked, row),
            warnings,
        },
        Answer::Status(_) => answer,
        Answer::List {
            mut page,
            continue_token,
        } => {
            for item in &mut page.items {
                *item = shown_item(item, asked, row);
            }
            Answer::List { page, continue_token }
        }
        Answer::Watch(watch) => {
            let (asked, row) = (Arc::clone(asked), Arc::clone(row));
            Answer::Watch(watch.showing(move |item| shown_item(item, &asked, &row)))
        }
    }
}

fn shown_item(item: &Item, asked: &Resource, row: &Resource) -> Arc<Item> {
    Arc::new(Item {
        key: Arc::clone(&item.key),
        revision: item.revision,
        body: shown(&item.body, asked, row),
        index: item.index.clone(),
    })
}

/// JSON in, JSON out, the `resourceVersion` kept; what does not parse is passed on as it is.
fn shown(body: &Bytes, asked: &Resource, row: &Resource) -> Bytes {
    let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
        return body.clone();
    };
    to_asked(&mut object, asked, row);
    let bytes = stored::encode(&object);
    match Revision::parse(text(&object, &["metadata", "resourceVersion"])) {
        Some(revision) => stored::with_revision(&bytes, revision),
        None => bytes,
    }
}
